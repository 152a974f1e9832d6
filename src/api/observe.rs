//! Tells who watches of every call: which, how it ended, how long it took.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{extract::Request, middleware::Next, response::Response};
use tonic::{Code, Status};

/// Who is told of calls. Called on the way of each: it must not block.
pub trait ApiObserver: Send + Sync + 'static {
    /// A call arrived. `method` is one of [`METHODS`], or [`OTHER`].
    fn began(&self, method: &'static str);
    /// The call was answered, or its stream began; [`Code::Cancelled`] when the caller went before that.
    fn ended(&self, method: &'static str, code: Code, took: Duration);
    /// A message was sent again, and answered as the first time.
    fn repeated(&self);
    /// A subscriber wanted to go on after a revision that this cluster does not have: it missed events, or is from elsewhere.
    fn cursor_refused(&self);
    /// A backup was made and sent in full.
    fn backed_up(&self);
}

/// Every method of `chat.v1`, by its own name: the names differ.
pub const METHODS: [&str; 19] = [
    "CreateAccount",
    "Login",
    "Logout",
    "DeleteAccount",
    "ListAccounts",
    "SendMessage",
    "Subscribe",
    "ReadConversation",
    "DeleteMessages",
    "ListChatPartners",
    "MarkRead",
    "AcknowledgeDelivery",
    "GetLeader",
    "ListNodes",
    "TransferLeadership",
    "AddNode",
    "RemoveNode",
    "Backup",
    "Snapshot",
];
/// All else: health, reflection, what does not exist. A caller must not be able to make up names.
pub const OTHER: &str = "other";

/// Passes a call on, and tells of it.
pub(super) async fn observe(observer: Arc<dyn ApiObserver>, request: Request, next: Next) -> Response {
    let method = method(request.uri().path());
    observer.began(method);
    let mut running = Running { observer, method, began: Instant::now(), code: Code::Cancelled };
    let response = next.run(request).await;
    // A good answer says so after its body.
    running.code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    response
}

/// A call under way. However it ends, somebody is told.
struct Running {
    observer: Arc<dyn ApiObserver>,
    method: &'static str,
    began: Instant,
    code: Code,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.observer.ended(self.method, self.code, self.began.elapsed());
    }
}

fn method(path: &str) -> &'static str {
    let ours = path.strip_prefix("/chat.v1.").and_then(|rest| rest.split_once('/'));
    ours.and_then(|(_, name)| METHODS.into_iter().find(|method| *method == name)).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_methods_are_known() {
        const FILES: [&str; 3] = [
            include_str!("../../proto/chat/v1/chat.proto"),
            include_str!("../../proto/chat/v1/cluster.proto"),
            include_str!("../../proto/chat/v1/admin.proto"),
        ];
        let declared = FILES.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("  rpc "));
        let methods: Vec<&str> = declared.filter_map(|rest| rest.split('(').next()).collect();
        assert_eq!(methods.len(), METHODS.len(), "{methods:?}");
        assert_eq!(BTreeSet::from_iter(methods), BTreeSet::from(METHODS));
        assert_eq!(method("/chat.v1.ChatService/SendMessage"), "SendMessage");
        for unknown in ["/chat.v1.ChatService/Send", "/grpc.health.v1.Health/Check", "/SendMessage", "", "/"] {
            assert_eq!(method(unknown), OTHER, "{unknown}");
        }
    }
}
