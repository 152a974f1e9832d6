//! Every message, field, enum, value, service and RPC of the protocol has a comment, and a kind of command keeps its
//! fields.
//!
//! Works on the descriptors that the build compiles, including source comments, so the check does not depend on the
//! formatting of the sources.

use std::collections::HashSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet, field_descriptor_proto::Type,
};

const ALL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/all_descriptors.bin"));

// Field numbers in descriptor.proto, which form the path of a source location.
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
const MESSAGE_FIELDS: i32 = 2;
const MESSAGE_NESTED: i32 = 3;
const MESSAGE_ENUMS: i32 = 4;
const MESSAGE_ONEOFS: i32 = 8;
const ENUM_VALUES: i32 = 2;
const SERVICE_METHODS: i32 = 2;

/// The items of a file that have a comment, and those that lack one.
struct Scan<'a> {
    file: &'a str,
    documented: HashSet<&'a [i32]>,
    seen: usize,
    missing: Vec<String>,
}

impl<'a> Scan<'a> {
    fn run(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.as_ref().map(|info| info.location.as_slice()).unwrap_or_default();
        let commented = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        let documented = locations.iter().filter(|location| commented(&location.leading_comments));
        let mut scan = Scan {
            file: file.name(),
            documented: documented.map(|location| location.path.as_slice()).collect(),
            seen: 0,
            missing: Vec::new(),
        };
        for (i, message) in (0..).zip(&file.message_type) {
            scan.message(&[FILE_MESSAGES, i], "", message);
        }
        for (i, enumeration) in (0..).zip(&file.enum_type) {
            scan.enumeration(&[FILE_ENUMS, i], "", enumeration);
        }
        for (i, service) in (0..).zip(&file.service) {
            let path = [FILE_SERVICES, i];
            scan.item(&path, service.name());
            for (j, method) in (0..).zip(&service.method) {
                scan.item(&below(&path, SERVICE_METHODS, j), &format!("{}.{}", service.name(), method.name()));
            }
        }
        scan
    }

    fn message(&mut self, path: &[i32], outer: &str, message: &DescriptorProto) {
        let name = format!("{outer}{}", message.name());
        self.item(path, &name);
        for (i, field) in (0..).zip(&message.field) {
            self.item(&below(path, MESSAGE_FIELDS, i), &format!("{name}.{}", field.name()));
        }
        for (i, oneof) in (0..).zip(&message.oneof_decl) {
            // `optional` creates a synthetic oneof, whose name starts with an underscore.
            if !oneof.name().starts_with('_') {
                self.item(&below(path, MESSAGE_ONEOFS, i), &format!("{name}.{}", oneof.name()));
            }
        }
        for (i, nested) in (0..).zip(&message.nested_type) {
            self.message(&below(path, MESSAGE_NESTED, i), &format!("{name}."), nested);
        }
        for (i, nested) in (0..).zip(&message.enum_type) {
            self.enumeration(&below(path, MESSAGE_ENUMS, i), &format!("{name}."), nested);
        }
    }

    fn enumeration(&mut self, path: &[i32], outer: &str, enumeration: &EnumDescriptorProto) {
        let name = format!("{outer}{}", enumeration.name());
        self.item(path, &name);
        for (i, value) in (0..).zip(&enumeration.value) {
            self.item(&below(path, ENUM_VALUES, i), &format!("{name}.{}", value.name()));
        }
    }

    fn item(&mut self, path: &[i32], name: &str) {
        self.seen += 1;
        if !self.documented.contains(path) {
            self.missing.push(format!("{}: {name}", self.file));
        }
    }
}

fn below(path: &[i32], kind: i32, index: i32) -> Vec<i32> {
    [path, &[kind, index]].concat()
}

#[test]
fn everything_is_documented() {
    let all = FileDescriptorSet::decode(ALL).expect("descriptors");
    let ours: Vec<_> = all.file.iter().filter(|file| !file.name().starts_with("google/")).collect();
    assert_eq!(ours.len(), 6, "every file of proto/ is compiled");
    let scans: Vec<_> = ours.into_iter().map(Scan::run).collect();
    let seen: usize = scans.iter().map(|scan| scan.seen).sum();
    assert!(seen > 300, "only {seen} items were looked at");
    let missing: Vec<_> = scans.into_iter().flat_map(|scan| scan.missing).collect();
    assert!(missing.is_empty(), "{} without a comment above them:\n{}", missing.len(), missing.join("\n"));
}

#[test]
fn what_is_not_documented_is_found() {
    let all = FileDescriptorSet::decode(ALL).expect("descriptors");
    let mut file = all.file.iter().find(|file| file.name() == "chat/v1/chat.proto").expect("there").clone();
    let info = file.source_code_info.as_mut().expect("comments are compiled in");
    for location in &mut info.location {
        // The first field of the first message.
        if location.path == [FILE_MESSAGES, 0, MESSAGE_FIELDS, 0] {
            location.leading_comments = None;
        }
    }
    assert_eq!(Scan::run(&file).missing, ["chat/v1/chat.proto: ReadConsistency.linearizable"]);
}

/// The fields of a message, one in a line, each with those of its own type.
fn fields(file: &FileDescriptorProto, message: &str, indent: &str, out: &mut String) {
    let short = message.trim_start_matches(".log.v1.");
    let found = file.message_type.iter().find(|candidate| candidate.name() == short).expect("a message of this file");
    for field in &found.field {
        let kind = if field.type_name().is_empty() { field.r#type().as_str_name() } else { field.type_name() };
        *out += &format!("{indent}{} {} {kind}\n", field.number(), field.name());
        if field.r#type() == Type::Message {
            fields(file, field.type_name(), &format!("{indent}  "), out);
        }
    }
}

#[test]
fn a_kind_of_command_keeps_its_fields() {
    const HIGHEST: i32 = 1023;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kinds.txt");
    let all = FileDescriptorSet::decode(ALL).expect("descriptors");
    let file = all.file.iter().find(|file| file.name() == "log/v1/command.proto").expect("the format of the log");
    let command = file.message_type.iter().find(|message| message.name() == "Command").expect("the command");
    assert!(command.field.iter().all(|kind| kind.oneof_index.is_some() && kind.number() <= HIGHEST));
    let mut now = String::new();
    fields(file, ".log.v1.Command", "", &mut now);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &now).expect("written");
    }
    let known = std::fs::read_to_string(path).expect("the kinds");
    assert_eq!(
        now, known,
        "older nodes would drop a new field without notice: add a kind instead, and run this with UPDATE=1"
    );
}
