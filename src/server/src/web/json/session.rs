//! Sessions of a page that cannot read its token.
//!
//! A page logs in with `Chat-Session: NAME`. The token then goes into a cookie that scripts cannot read, and is removed
//! from the answer. A later call that names the account again, and has no `Authorization`, uses that cookie.
//!
//! Invariants:
//! - A cookie is used only if the request names its account in a header. A form or a link of another site cannot send
//!   that header, and a script of another origin is rejected earlier (`super::super::guard`), so requests cannot be
//!   forged.
//! - A page never acts for another account, even after a login in another tab or with a planted cookie: each account
//!   has its own cookie, and the services compare the session's account with the named one ([`MISMATCH`]).
//! - Over TLS the cookie's name begins with `__Host-`. Browsers accept such a cookie only from this host, so a sibling
//!   domain or a page without TLS cannot plant one. Cookies of earlier versions are accepted until they expire or are
//!   replaced.
//! - Several cookies of one name (without TLS, a sibling domain can add one) are tried in turn, so that a planted one
//!   does not lock its victim out.
//!
//! Does not cover: whether a request came over TLS. `super::super::guard` determines that; the caller's headers do not.

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use prost::Message as _;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{failure::Refusal, protocol::Method};
use chat::limits::check_username;
use proto::{
    PREFIX_BYTES,
    chat::v1::{LoginRequest, LoginResponse},
    framed,
};

/// The header with the account whose cookie is used.
pub(super) const SESSION: &str = "chat-session";
/// The error reason for a session of another account.
const MISMATCH: &str = "SESSION_MISMATCH";
/// Reasons for which the next cookie of the same name is tried. None of them depends on the content of the call.
const NOT_THIS_ONE: [&str; 3] = ["TOKEN_INVALID", "TOKEN_EXPIRED", MISMATCH];
/// Most cookies of one name that are tried.
const COOKIES_MAX: usize = 3;
/// The prefix of the cookies' names.
const COOKIE: &str = "chat_session.";
/// The prefix over TLS. For it, browsers enforce that the cookie belongs to this host, its root path, and TLS.
const HOST_COOKIE: &str = "__Host-chat_session.";
/// The prefix of the cookies which show that a browser has logged in before.
const DEVICE: &str = "chat_device.";
/// The prefix of the same over TLS.
const HOST_DEVICE: &str = "__Host-chat_device.";
/// Longest lifetime that browsers allow: 400 days.
const DEVICE_SECONDS: u64 = 400 * 24 * 3600;
/// The path of the calls that need cookies, which no other request of a browser has. `__Host-` allows only the root.
const PATH: &str = "/chat.v1.ChatService/";

/// The account whose cookie is used.
pub(super) struct Session {
    name: String,
    /// Whether the browser's connection is encrypted. If so, the cookie must never be sent without TLS.
    secure: bool,
}

impl Session {
    /// The session that the request names, if any. `secure` states that the request arrived over TLS.
    pub(super) fn of(headers: &HeaderMap, secure: bool) -> Result<Option<Self>, Refusal> {
        let Some(name) = headers.get(SESSION) else { return Ok(None) };
        let name = name.to_str().unwrap_or_default();
        check_username("Chat-Session", name).map_err(|invalid| Refusal::unreadable(&invalid))?;
        Ok(Some(Self { name: name.to_owned(), secure }))
    }

    /// The account's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The possible authorizations of the request, from its cookies, in the order of attempts.
    pub(super) fn authorizations(&self, headers: &HeaderMap) -> Vec<HeaderValue> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let pairs: Vec<(&str, &str)> =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('=')).collect();
        let prefixes: &[&str] = if self.secure { &[HOST_COOKIE, COOKIE] } else { &[COOKIE] };
        let named = prefixes.iter().flat_map(|prefix| {
            let is_named = move |pair: &&(&str, &str)| pair.0.strip_prefix(prefix) == Some(self.name.as_str());
            pairs.iter().filter(is_named)
        });
        named.filter_map(|(_, token)| HeaderValue::try_from(format!("Bearer {token}")).ok()).take(COOKIES_MAX).collect()
    }

    /// Whether a call that ended with `status` may be repeated with the next cookie.
    pub(super) fn is_not_this_one(status: &Status) -> bool {
        let details = status.get_error_details();
        details.error_info().is_some_and(|info| NOT_THIS_ONE.contains(&info.reason.as_str()))
    }

    /// Whether the cookie holds a session of another account.
    pub(super) fn is_mismatch(status: &Status) -> bool {
        status.get_error_details().error_info().is_some_and(|info| info.reason == MISMATCH)
    }

    /// Rejects a login into another account than the named one, whose token would go into the wrong cookie.
    pub(super) fn check_login(&self, method: &Method, message: &[u8]) -> Result<(), Refusal> {
        if method.name() != "Login" {
            return Ok(());
        }
        let login = LoginRequest::decode(message).map_err(|error| Refusal::unreadable(&error))?;
        if login.username == self.name { Ok(()) } else { Err(Refusal::no_session()) }
    }

    /// Adds to a login the device token of the browser's cookie, if it has one and the message contains none.
    pub(super) fn introduce(&self, method: &Method, message: Bytes, headers: &HeaderMap) -> Result<Bytes, Status> {
        let prefix = if self.secure { HOST_DEVICE } else { DEVICE };
        if method.name() != "Login" {
            return Ok(message);
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let Some((_, token)) = pairs.find(|pair| pair.0.strip_prefix(prefix) == Some(self.name.as_str())) else {
            return Ok(message);
        };
        let mut login = LoginRequest::decode(&message[PREFIX_BYTES..])
            .map_err(|error| Status::internal(format!("the login: {error}")))?;
        if login.device_token.is_empty() {
            login.device_token = token.to_owned();
        }
        framed(&login)
    }

    /// Removes the token from the answer to a login. Returns the cookies that the answer sets or removes.
    pub(super) fn keep(
        &self,
        method: &Method,
        message: Bytes,
        now_ms: u64,
    ) -> Result<(Bytes, Vec<HeaderValue>), Status> {
        match method.name() {
            "Login" => {
                let mut login = LoginResponse::decode(message)
                    .map_err(|error| Status::internal(format!("the answer to the login: {error}")))?;
                let token = std::mem::take(&mut login.token);
                let seconds = login.expires_at_ms.saturating_sub(now_ms) / 1000;
                let device = std::mem::take(&mut login.device_token);
                let mut cookies = self.set(&token, seconds)?;
                cookies.push(self.device(&device)?);
                Ok((login.encode_to_vec().into(), cookies))
            }
            "Logout" | "DeleteAccount" => Ok((message, self.removed()?)),
            _ => Ok((message, Vec::new())),
        }
    }

    /// The cookie that identifies the browser at its next login. It stays after a logout.
    fn device(&self, token: &str) -> Result<HeaderValue, Status> {
        let (prefix, path, secure) = if self.secure { (HOST_DEVICE, "/", "; Secure") } else { (DEVICE, PATH, "") };
        let name = &self.name;
        let cookie =
            format!("{prefix}{name}={token}; Path={path}; Max-Age={DEVICE_SECONDS}; HttpOnly; SameSite=Strict{secure}");
        HeaderValue::try_from(cookie).map_err(|error| Status::internal(format!("the cookie: {error}")))
    }

    /// The headers that remove the cookies.
    pub(super) fn removed(&self) -> Result<Vec<HeaderValue>, Status> {
        self.set("", 0)
    }

    /// Over TLS, also removes the cookie of earlier versions, which the new one replaces.
    fn set(&self, token: &str, seconds: u64) -> Result<Vec<HeaderValue>, Status> {
        let name = &self.name;
        let kind = "HttpOnly; SameSite=Strict";
        let cookies = if self.secure {
            vec![
                format!("{HOST_COOKIE}{name}={token}; Path=/; Max-Age={seconds}; {kind}; Secure"),
                format!("{COOKIE}{name}=; Path={PATH}; Max-Age=0; {kind}; Secure"),
            ]
        } else {
            vec![format!("{COOKIE}{name}={token}; Path={PATH}; Max-Age={seconds}; {kind}")]
        };
        let value =
            |cookie| HeaderValue::try_from(cookie).map_err(|error| Status::internal(format!("the cookie: {error}")));
        cookies.into_iter().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::protocol::Protocol, *};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        HeaderMap::from_iter(pairs.map(|(name, value): (header::HeaderName, _)| (name, value)))
    }

    fn session(pairs: &[(&'static str, &'static str)], secure: bool) -> Option<Session> {
        Session::of(&headers(pairs), secure).unwrap_or_else(|_| panic!("refused"))
    }

    #[test]
    fn the_cookies_of_the_named_account_count() {
        let used = |pairs: &[(&'static str, &'static str)], secure| {
            let tokens = session(pairs, secure).unwrap().authorizations(&headers(pairs));
            tokens.iter().map(|token| token.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let asked =
            [("chat-session", "bob"), ("cookie", "a=b; chat_session.bo=1; chat_session.bob=2; chat_session.bobby=3")];
        assert_eq!(used(&asked, false), ["Bearer 2"]);
        let planted = [("chat-session", "bob"), ("cookie", "chat_session.bob=evil; chat_session.bob=2")];
        assert_eq!(used(&planted, false), ["Bearer evil", "Bearer 2"]);
        let both = [("chat-session", "bob"), ("cookie", "chat_session.bob=old; __Host-chat_session.bob=new")];
        assert_eq!(used(&both, true), ["Bearer new", "Bearer old"]);
        assert_eq!(used(&both, false), ["Bearer old"], "without TLS nobody can have set the other");
        let many = [
            ("chat-session", "b"),
            ("cookie", "chat_session.b=1; chat_session.b=2; chat_session.b=3; chat_session.b=4"),
        ];
        assert_eq!(used(&many, false).len(), COOKIES_MAX);
        assert!(used(&[("chat-session", "bob"), ("cookie", "chat_session.bobby=3; =; x")], false).is_empty());
        assert!(session(&[("cookie", "chat_session.bob=2")], false).is_none(), "nobody is named");
        for bad in ["", "Bob", "a b", "a=1; chat_session.b"] {
            assert!(Session::of(&headers(&[("chat-session", bad)]), false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_token_goes_into_the_cookie_and_nowhere_else() {
        let (protocol, asked) = (Protocol::new(), session(&[("chat-session", "bob")], false).unwrap());
        let method = |name| protocol.method("chat.v1.ChatService", name).unwrap();
        let login = LoginResponse {
            token: "t".into(),
            expires_at_ms: 65_000,
            account_id: 7,
            device_token: "d".into(),
            ..Default::default()
        };
        let (answer, cookies) = asked.keep(&method("Login"), login.encode_to_vec().into(), 5_000).unwrap();
        let path = "Path=/chat.v1.ChatService/";
        let expected = [
            format!("chat_session.bob=t; {path}; Max-Age=60; HttpOnly; SameSite=Strict"),
            format!("chat_device.bob=d; {path}; Max-Age=34560000; HttpOnly; SameSite=Strict"),
        ];
        assert_eq!(cookies, expected.each_ref().map(String::as_str));
        let answer = LoginResponse::decode(answer).unwrap();
        assert_eq!((answer.token.as_str(), answer.account_id), ("", 7));
        for ending in ["Logout", "DeleteAccount"] {
            let (_, cookies) = asked.keep(&method(ending), Bytes::new(), 5_000).unwrap();
            assert_eq!(cookies, [format!("chat_session.bob=; {path}; Max-Age=0; HttpOnly; SameSite=Strict").as_str()]);
        }
        assert_eq!(asked.keep(&method("SendMessage"), Bytes::new(), 0).unwrap().1, Vec::<HeaderValue>::new());
    }

    #[test]
    fn over_tls_the_cookie_is_of_this_host_alone() {
        // The caller's headers do not affect how the request arrived.
        let claimed = [("chat-session", "bob"), ("origin", "https://n1:8080"), ("x-forwarded-proto", "https")];
        let cookies = session(&claimed, false).unwrap().removed().unwrap();
        assert!(!cookies[0].to_str().unwrap().contains("Secure"));
        let cookies = session(&claimed, true).unwrap().set("t", 60).unwrap();
        let expected = [
            "__Host-chat_session.bob=t; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure",
            "chat_session.bob=; Path=/chat.v1.ChatService/; Max-Age=0; HttpOnly; SameSite=Strict; Secure",
        ];
        assert_eq!(cookies, expected);
    }

    #[test]
    fn a_login_is_into_the_named_account() {
        let (protocol, asked) = (Protocol::new(), session(&[("chat-session", "bob")], false).unwrap());
        let check = |method, name: &str| {
            let login = LoginRequest { username: name.into(), password: "p".into(), ..Default::default() };
            asked.check_login(&protocol.method("chat.v1.ChatService", method).unwrap(), &login.encode_to_vec()).is_ok()
        };
        assert!(check("Login", "bob") && check("CreateAccount", "mallory"));
        assert!(!check("Login", "mallory"));
    }
}
