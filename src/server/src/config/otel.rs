//! The supported `OTEL_*` variables, which the OpenTelemetry specification defines for traces.
//!
//! Without an endpoint nothing is traced, and the other variables are ignored, as other programs may share the
//! environment. With an endpoint, an unsupported value is a mistake like any other.

use std::{collections::HashMap, path::Path, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Uri,
};

use super::Mistake;
use crate::telemetry::traces::{Sampler, TraceSettings};
use net::{Dialer, tls::Connector};

/// Each variable, with its default and its meaning.
pub(super) const VARIABLES: [(&str, &str, &str); 15] = [
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "none: tracing is off",
        "The trace collector (OTLP over gRPC): http(s)://host:port.",
    ),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "none", "Authorities (PEM) for the certificate of a collector with https."),
    ("OTEL_EXPORTER_OTLP_HEADERS", "none", "key=value,... sent with each export; values are percent-decoded."),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000", "Timeout of an export, in ms."),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "Only grpc."),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "none", "Only none."),
    ("OTEL_TRACES_EXPORTER", "otlp", "otlp, or none: tracing is off."),
    (
        "OTEL_TRACES_SAMPLER",
        "parentbased_always_on",
        "always_on|always_off|traceidratio; with the prefix parentbased_, a caller's sampling decision takes \
         precedence.",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", "1.0", "Share of traces that traceidratio samples, from 0 to 1."),
    ("OTEL_SERVICE_NAME", "quorum-chat", "service.name of the spans; service.instance.id is NAME."),
    ("OTEL_RESOURCE_ATTRIBUTES", "none", "key=value,... on all spans; values are percent-decoded."),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "2048", "Queue for spans to export; further spans are dropped and counted."),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512", "Spans in one export."),
    ("OTEL_BSP_SCHEDULE_DELAY", "5000", "Maximum delay of a batch, in ms."),
    ("OTEL_SDK_DISABLED", "false", "true: tracing is off."),
];

/// The result of reading the variables.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// `None` if tracing is off.
    pub settings: Option<TraceSettings>,
    pub mistakes: Vec<Mistake>,
    /// The variables in effect, with values that could be given again. Secrets are hidden.
    pub effective: Vec<(String, String)>,
}

/// Reads the variables from `source`. `name` is this node's.
pub(super) fn load(source: &[(String, String)], name: &str) -> Loaded {
    let given = source.iter().filter(|(key, value)| key.starts_with("OTEL_") && !value.is_empty());
    let given: HashMap<&str, &str> = given.map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut reader = Reader { given, found: Loaded::default() };
    let settings = reader.settings(name);
    let mut found = reader.found;
    match settings {
        Some(settings) if found.mistakes.is_empty() => found.settings = Some(settings),
        _ => found.effective.clear(),
    }
    found
}

struct Reader<'a> {
    given: HashMap<&'a str, &'a str>,
    found: Loaded,
}

impl<'a> Reader<'a> {
    /// The variable for traces, or else the one for all signals. Returns its name and its value.
    fn exporter(&self, what: &str) -> Option<(String, &'a str)> {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
        names.into_iter().find_map(|name| self.given.get(name.as_str()).map(|value| (name, *value)))
    }

    /// Parses a variable, or its default in the table, with `parse`. `None` only after a mistake was recorded.
    fn read<T>(
        &mut self,
        given: Option<(String, &'a str)>,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let default = VARIABLES.iter().find(|(known, ..)| *known == name).map_or("", |(_, default, _)| default);
        let (key, text) = given.unwrap_or_else(|| (name.to_owned(), default));
        let parsed = parse(text);
        if parsed.is_none() {
            self.mistake(&key, text, expected);
        }
        self.found.effective.push((key, text.to_owned()));
        parsed
    }

    fn plain<T>(&mut self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let given = self.given.get(name).map(|value| (name.to_owned(), *value));
        self.read(given, name, expected, parse)
    }

    fn of_exporter<T>(&mut self, what: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let given = self.exporter(what);
        self.read(given, &format!("OTEL_EXPORTER_OTLP_{what}"), expected, parse)
    }

    fn number<T: FromStr + PartialOrd>(&mut self, name: &str, expected: &str, (min, max): (T, T)) -> Option<T> {
        self.plain(name, expected, |text| text.parse().ok().filter(|number| *number >= min && *number <= max))
    }

    fn mistake(&mut self, key: &str, given: &str, expected: &str) {
        let given = if key.ends_with("_HEADERS") { "(hidden)".to_owned() } else { format!("{given:?}") };
        self.found.mistakes.push(Mistake { key: key.to_owned(), given, expected: expected.to_owned() });
    }

    fn settings(&mut self, name: &str) -> Option<TraceSettings> {
        let (endpoint_key, endpoint) = self.exporter("ENDPOINT")?;
        let disabled = self.given.get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if disabled || self.given.get("OTEL_TRACES_EXPORTER") == Some(&"none") {
            return None;
        }
        self.plain("OTEL_TRACES_EXPORTER", "otlp or none", |text| (text == "otlp").then_some(()));
        self.of_exporter("PROTOCOL", "grpc: this program has no other", |text| (text == "grpc").then_some(()));
        self.of_exporter("COMPRESSION", "none: this program does not compress", |text| (text == "none").then_some(()));
        let endpoint =
            self.read(Some((endpoint_key, endpoint)), "", "http://host:port or https://host:port, without a path", uri);
        let dialer = self.dialer(endpoint.as_ref());
        let headers = self.headers();
        let timeout = self.of_exporter("TIMEOUT", "a whole number of ms from 1 to 600000", |text| {
            text.parse().ok().filter(|ms| (1..=600_000).contains(ms)).map(Duration::from_millis)
        });
        let sampler = self.sampler();
        let resource = self.resource(name);
        let queue_max = self.number("OTEL_BSP_MAX_QUEUE_SIZE", "a whole number from 1 to 1000000", (1, 1_000_000));
        let batch_max = self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "a whole number from 1 to 100000", (1, 100_000));
        let delay = self.number("OTEL_BSP_SCHEDULE_DELAY", "a whole number of ms from 1 to 3600000", (1, 3_600_000));
        Some(TraceSettings {
            endpoint: endpoint?,
            dialer: dialer?,
            headers: headers?,
            timeout: timeout?,
            sampler: sampler?,
            resource: resource?,
            queue_max: queue_max?,
            // The specification requires that a batch is not larger than the queue.
            batch_max: batch_max?.min(queue_max?),
            delay: Duration::from_millis(delay?),
        })
    }

    /// `None` after a mistake.
    fn dialer(&mut self, endpoint: Option<&Uri>) -> Option<Dialer> {
        if endpoint?.scheme_str() != Some("https") {
            return Some(Dialer::default());
        }
        let Some((key, path)) = self.exporter("CERTIFICATE") else {
            let expected = "a file with the authorities that vouch for the collector, as its endpoint is https";
            self.mistake("OTEL_EXPORTER_OTLP_CERTIFICATE", "", expected);
            return None;
        };
        match Connector::trusting(Path::new(path)) {
            Ok(connector) => {
                self.found.effective.push((key, path.to_owned()));
                Some(connector.into())
            }
            Err(error) => {
                self.mistake(&key, path, &format!("a file that can be used ({error})"));
                None
            }
        }
    }

    fn headers(&mut self) -> Option<MetadataMap> {
        let Some((key, text)) = self.exporter("HEADERS") else { return Some(MetadataMap::new()) };
        let entry = |(key, value): (String, String)| {
            let key = AsciiMetadataKey::from_str(&key.to_ascii_lowercase()).ok()?;
            let mut value = AsciiMetadataValue::try_from(value).ok()?;
            // Hides the value in debug output.
            value.set_sensitive(true);
            Some((key, value))
        };
        let entries = pairs(text).and_then(|pairs| pairs.into_iter().map(entry).collect::<Option<Vec<_>>>());
        let Some(entries) = entries else {
            self.mistake(&key, text, "key=value,... with keys and values that can be sent as headers");
            return None;
        };
        self.found.effective.push((key, "(hidden)".to_owned()));
        let mut headers = MetadataMap::new();
        for (key, value) in entries {
            headers.insert(key, value);
        }
        Some(headers)
    }

    fn sampler(&mut self) -> Option<Sampler> {
        let expected = "always_on, always_off, traceidratio, or one of these after parentbased_";
        let name = self.plain("OTEL_TRACES_SAMPLER", expected, |text| {
            let (parent_based, root) = text.strip_prefix("parentbased_").map_or((false, text), |root| (true, root));
            matches!(root, "always_on" | "always_off" | "traceidratio").then(|| (parent_based, root.to_owned()))
        });
        let (parent_based, root) = name?;
        let ratio = match root.as_str() {
            "always_on" => 1.0,
            "always_off" => 0.0,
            _ => self.number("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", (0.0, 1.0))?,
        };
        Some(Sampler { ratio, parent_based })
    }

    fn resource(&mut self, name: &str) -> Option<Vec<(String, String)>> {
        let service = self.plain("OTEL_SERVICE_NAME", "a name", |text| Some(text.to_owned()))?;
        let mut all = vec![
            ("service.name".to_owned(), service),
            ("service.instance.id".to_owned(), name.to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        const KEY: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let Some(text) = self.given.get(KEY).copied() else { return Some(all) };
        self.found.effective.push((KEY.to_owned(), text.to_owned()));
        let Some(more) = pairs(text) else {
            self.mistake(KEY, text, "key=value,...");
            return None;
        };
        let has_name = self.given.contains_key("OTEL_SERVICE_NAME");
        for (key, value) in more {
            match all.iter_mut().find(|(known, _)| *known == key) {
                // The variable for the service name takes precedence over the list.
                Some(_) if key == "service.name" && has_name => {}
                Some(known) => known.1 = value,
                None => all.push((key, value)),
            }
        }
        Some(all)
    }
}

fn uri(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    // A password in it would be printed with the rest of the configuration.
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !has_user;
    (is_known && is_bare && uri.host().is_some_and(|host| !host.is_empty()) && uri.port().is_some()).then_some(uri)
}

/// `key=value,...`, with percent-encoded values; `None` if the text has another format.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (key, value) = item.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let key = key.trim();
            (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pairs: &[(&str, &str)]) -> Loaded {
        let source: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(&source, "n1")
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn nothing_is_traced_without_an_endpoint_or_when_it_is_switched_off() {
        let off = |pairs: &[(&str, &str)]| {
            let found = found(pairs);
            assert!(found.settings.is_none() && found.mistakes.is_empty() && found.effective.is_empty(), "{found:?}");
        };
        off(&[]);
        // The other variables may be meant for other programs.
        off(&[("OTEL_TRACES_SAMPLER", "jaeger_remote"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        off(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
        off(&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")]);
        off(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]);
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let settings = found(&[ENDPOINT]).settings.unwrap();
        assert_eq!(settings.endpoint, "http://collector:4317");
        assert_eq!(settings.sampler, Sampler { ratio: 1.0, parent_based: true });
        assert_eq!((settings.queue_max, settings.batch_max), (2048, 512));
        assert_eq!((settings.timeout, settings.delay), (Duration::from_secs(10), Duration::from_secs(5)));
        let resource: HashMap<_, _> = settings.resource.into_iter().collect();
        assert_eq!((&*resource["service.name"], &*resource["service.instance.id"]), ("quorum-chat", "n1"));
    }

    #[test]
    fn what_is_given_is_followed() {
        let found = found(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1]:9/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b, other=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
            ("OTEL_SERVICE_NAME", "chat"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=not-this,deployment.environment.name=a%2Cb,service.instance.id=x",
            ),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ]);
        assert_eq!(found.mistakes, []);
        let settings = found.settings.unwrap();
        assert_eq!(settings.endpoint, "http://[::1]:9/");
        assert_eq!(settings.headers.get("api-key").unwrap(), "a b");
        assert_eq!(settings.sampler, Sampler { ratio: 0.01, parent_based: false });
        assert_eq!((settings.queue_max, settings.batch_max), (100, 100), "a batch is not larger than the queue");
        assert_eq!((settings.timeout, settings.delay), (Duration::from_millis(1500), Duration::from_millis(50)));
        let resource: HashMap<_, _> = settings.resource.iter().cloned().collect();
        assert_eq!(&*resource["service.name"], "chat");
        assert_eq!((&*resource["deployment.environment.name"], &*resource["service.instance.id"]), ("a,b", "x"));
        let shown = format!("{settings:?} {:?}", found.effective);
        assert!(!shown.contains("a b") && !shown.contains("a%20b"), "{shown}");
        assert!(found.effective.contains(&("OTEL_EXPORTER_OTLP_HEADERS".into(), "(hidden)".into())), "{shown}");
        assert!(found.effective.contains(&("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT".into(), "http://[::1]:9/".into())));
    }

    #[test]
    fn every_mistake_is_told_with_its_own_variable() {
        let wrong = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "Secret Key"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_RESOURCE_ATTRIBUTES", "x"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ];
        let found = found(&[&wrong[..], &[ENDPOINT, ("OTEL_BSP_EXPORT_TIMEOUT", "x")]].concat());
        assert!(found.settings.is_none() && found.effective.is_empty());
        let reported = |key: &str| found.mistakes.iter().any(|mistake| mistake.key == key);
        for (key, value) in wrong {
            // The name of the sampler is valid, its number is not.
            assert_eq!(reported(key), key != "OTEL_TRACES_SAMPLER", "{key}={value}: {:?}", found.mistakes);
        }
        assert_eq!(found.mistakes.len(), wrong.len() - 1, "{:?}", found.mistakes);
        assert!(!format!("{:?}", found.mistakes).contains("Secret Key"));
    }

    #[test]
    fn an_endpoint_has_a_scheme_a_host_and_a_port_and_https_has_authorities() {
        let keys = |endpoint: &str, more: &[(&str, &str)]| {
            let found = found(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)], more].concat());
            assert_eq!(found.settings.is_none(), !found.mistakes.is_empty());
            found.mistakes.into_iter().map(|mistake| mistake.key).collect::<Vec<_>>()
        };
        for bad in [
            "collector:4317",
            "http://collector",
            "grpc://c:1",
            "http://c:1/v1/traces",
            "http://:1",
            "http://c:x",
            "http://u:p@c:1",
        ] {
            assert_eq!(keys(bad, &[]), ["OTEL_EXPORTER_OTLP_ENDPOINT"], "{bad}");
        }
        assert_eq!(keys("https://c:4317", &[]), ["OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere");
        assert_eq!(keys("https://c:4317", &[missing]), ["OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        assert!(keys("http://c:4317", &[missing]).is_empty(), "nobody asks for it");
    }
}
