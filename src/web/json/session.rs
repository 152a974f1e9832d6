//! Sessions that a page holds without knowing their token.
//!
//! A page logs in with `Chat-Session: NAME`; then the token goes into a cookie that scripts cannot read, and is left out of the
//! answer. A later call that names the account again, and has no `Authorization`, is made with that cookie. Invariants:
//! - A cookie counts only when the request names its account in a header. A form or a link of another site cannot send one, and a
//!   script of another origin has to be allowed to (`super::super::origins`): there is nothing to forge.
//! - A page never acts for somebody else because another tab logged in: each account has a cookie of its own.

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use prost::Message as _;
use tonic::Status;

use super::{failure::Refusal, protocol::Method};
use crate::{chat::limits::check_username, proto::chat::v1::LoginResponse};

/// The header that names the account whose cookie counts.
pub(super) const SESSION: &str = "chat-session";
/// What the cookies' names begin with.
const COOKIE: &str = "chat_session.";
/// The calls that need cookies, and no other request that a browser makes.
const PATH: &str = "/chat.v1.ChatService/";

/// The account whose cookie is to be used.
pub(super) struct Session {
    cookie: String,
    /// The page came over TLS, so the cookie must never go without.
    secure: bool,
}

impl Session {
    /// The session that the request names, if it names one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let Some(name) = headers.get(SESSION) else { return Ok(None) };
        let name = name.to_str().unwrap_or_default();
        check_username("Chat-Session", name).map_err(|invalid| Refusal::unreadable(&invalid))?;
        // A proxy may have taken the TLS off, but the browser still says what it sees.
        let secure = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https:"));
        Ok(Some(Self { cookie: format!("{COOKIE}{name}"), secure }))
    }

    /// What the request is to be authorized with, from its cookies.
    pub(super) fn authorization(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, token) = pairs.find(|(name, _)| *name == self.cookie)?;
        HeaderValue::try_from(format!("Bearer {token}")).ok()
    }

    /// Takes the token out of the answer to a login, and says which cookie the answer sets or removes.
    pub(super) fn keep(
        &self,
        method: &Method,
        message: Bytes,
        now_ms: u64,
    ) -> Result<(Bytes, Option<HeaderValue>), Status> {
        match method.name() {
            "Login" => {
                let mut login = LoginResponse::decode(message)
                    .map_err(|error| Status::internal(format!("the answer to the login: {error}")))?;
                let token = std::mem::take(&mut login.token);
                let seconds = login.expires_at_ms.saturating_sub(now_ms) / 1000;
                Ok((login.encode_to_vec().into(), Some(self.set(&token, seconds)?)))
            }
            "Logout" | "DeleteAccount" => Ok((message, Some(self.removed()?))),
            _ => Ok((message, None)),
        }
    }

    /// What removes the cookie.
    pub(super) fn removed(&self) -> Result<HeaderValue, Status> {
        self.set("", 0)
    }

    fn set(&self, token: &str, seconds: u64) -> Result<HeaderValue, Status> {
        let (name, secure) = (&self.cookie, if self.secure { "; Secure" } else { "" });
        let cookie = format!("{name}={token}; Path={PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
        HeaderValue::try_from(cookie).map_err(|error| Status::internal(format!("the cookie: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::protocol::Protocol, *};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        HeaderMap::from_iter(pairs.map(|(name, value): (header::HeaderName, _)| (name, value)))
    }

    fn session(pairs: &[(&'static str, &'static str)]) -> Option<Session> {
        Session::of(&headers(pairs)).unwrap_or_else(|_| panic!("refused"))
    }

    #[test]
    fn the_cookie_of_the_named_account_counts() {
        let asked =
            [("chat-session", "bob"), ("cookie", "a=b; chat_session.bo=1; chat_session.bob=2; chat_session.bobby=3")];
        assert_eq!(session(&asked).unwrap().authorization(&headers(&asked)).unwrap(), "Bearer 2");
        let none = [("chat-session", "bob"), ("cookie", "chat_session.bobby=3; =; x")];
        assert_eq!(session(&none).unwrap().authorization(&headers(&none)), None);
        assert!(session(&[("cookie", "chat_session.bob=2")]).is_none(), "nobody is named");
        for bad in ["", "Bob", "a b", "a=1; chat_session.b"] {
            assert!(Session::of(&headers(&[("chat-session", bad)])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_token_goes_into_the_cookie_and_nowhere_else() {
        let (protocol, asked) = (Protocol::new(), session(&[("chat-session", "bob")]).unwrap());
        let method = |name| protocol.method("chat.v1.ChatService", name).unwrap();
        let login = LoginResponse { token: "t".into(), expires_at_ms: 65_000, account_id: 7, ..Default::default() };
        let (answer, cookie) = asked.keep(&method("Login"), login.encode_to_vec().into(), 5_000).unwrap();
        let path = "Path=/chat.v1.ChatService/";
        assert_eq!(cookie.unwrap(), format!("chat_session.bob=t; {path}; Max-Age=60; HttpOnly; SameSite=Strict"));
        let answer = LoginResponse::decode(answer).unwrap();
        assert_eq!((answer.token.as_str(), answer.account_id), ("", 7));
        for ending in ["Logout", "DeleteAccount"] {
            let (_, cookie) = asked.keep(&method(ending), Bytes::new(), 5_000).unwrap();
            assert_eq!(cookie.unwrap(), format!("chat_session.bob=; {path}; Max-Age=0; HttpOnly; SameSite=Strict"));
        }
        assert_eq!(asked.keep(&method("SendMessage"), Bytes::new(), 0).unwrap().1, None);
        let over_tls = session(&[("chat-session", "bob"), ("origin", "https://n1:8080")]).unwrap();
        let (_, cookie) = over_tls.keep(&method("Logout"), Bytes::new(), 0).unwrap();
        assert!(cookie.unwrap().to_str().unwrap().ends_with("; SameSite=Strict; Secure"));
    }
}
