//! `chatd secret --kubernetes NAME`: stores the secret that the nodes share as a Kubernetes Secret.
//!
//! Runs in a pod whose service account is allowed one thing: to create Secrets. Makes one request over HTTPS, with the
//! token and the certificate authority that Kubernetes mounts into the pod. Invariant: an existing Secret is never
//! changed, because the API server refuses to create it again, so the command is idempotent. Does not cover: retries,
//! which are the Job's.

use std::{fs, io, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::http::{self, Answer};
use net::{
    Dialer,
    tls::{Connector, TlsError},
};

/// Where Kubernetes mounts the token, its namespace and the authority of the API server.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The name of the API server within a cluster, for when the environment does not name its address.
const DEFAULT_HOST: &str = "kubernetes.default.svc";
/// The key of the secret in the Secret: the name of the file when it is mounted.
const KEY: &str = "peer-secret";
/// Time limit for the request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the Secret was not created.
#[derive(Debug, thiserror::Error)]
pub(super) enum KubernetesError {
    /// A file of the service account cannot be read.
    #[error("{path}: {source} (does the pod mount a service account token?)")]
    Mount {
        /// The path.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The authority of the API server cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The API server did not answer.
    #[error("the Kubernetes API at {address}: {source}")]
    Call {
        /// The address of the API server.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// The API server rejected the request.
    #[error("the Kubernetes API at {address} answered {answer}")]
    Refused {
        /// The address of the API server.
        address: String,
        /// The status and the message.
        answer: String,
    },
}

/// The API server, and the caller's credentials.
pub(super) struct Api {
    address: String,
    token: String,
    namespace: String,
    dialer: Dialer,
}

impl Api {
    /// Finds the API server of the cluster that this pod runs in.
    pub(super) fn of_pod(environment: &[(String, String)]) -> Result<Self, KubernetesError> {
        let given = |name: &str| environment.iter().find(|(key, value)| key == name && !value.is_empty());
        let host = given("KUBERNETES_SERVICE_HOST").map_or(DEFAULT_HOST, |(_, host)| host);
        let port = given("KUBERNETES_SERVICE_PORT").map_or("443", |(_, port)| port);
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self::new(address, Path::new(MOUNT))
    }

    fn new(address: String, mount: &Path) -> Result<Self, KubernetesError> {
        let read = |name: &str| {
            let path = mount.join(name);
            let path_text = path.display().to_string();
            fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|source| KubernetesError::Mount { path: path_text, source })
        };
        let dialer = Connector::trusting(&mount.join("ca.crt"))?.with_http1().into();
        Ok(Self { address, token: read("token")?, namespace: read("namespace")?, dialer })
    }

    /// Creates the Secret `name`. False: it exists already.
    pub(super) async fn create_secret(&self, name: &str, secret: &str) -> Result<bool, KubernetesError> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/name": "quorum-chat" } },
            "type": "Opaque",
            "data": { KEY: STANDARD.encode(secret) },
        });
        let answer = match timeout(TIMEOUT, self.post(&body)).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let address = self.address.clone();
        let answer = answer.map_err(|source| KubernetesError::Call { address: address.clone(), source })?;
        match answer.status {
            StatusCode::CONFLICT => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(KubernetesError::Refused { address, answer: shown(&answer) }),
        }
    }

    async fn post(&self, body: &Value) -> io::Result<Answer> {
        let request = Request::post(format!("/api/v1/namespaces/{}/secrets", self.namespace))
            .header(HOST, &self.address)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(body.to_string())
            .map_err(io::Error::other)?;
        http::exchange(self.dialer.open(&self.address, TIMEOUT).await?, request).await
    }
}

/// The status, and the message in the body if there is one.
fn shown(answer: &Answer) -> String {
    let body: Option<Value> = serde_json::from_str(&answer.body).ok();
    match body.as_ref().and_then(|body| body["message"].as_str()) {
        Some(message) => format!("{}: {message}", answer.status),
        None => answer.status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use net::{
        Listener as _,
        tls::{Files, Port, Protocol, Tls, issue::Authority},
    };

    /// Starts an API server that gives the answers in order. The task returns the requests.
    async fn api(dir: &Path, answers: Vec<&'static str>) -> (Api, tokio::task::JoinHandle<Vec<String>>) {
        let authority = Authority::open(dir).unwrap();
        let issued = authority.issue("api", &["127.0.0.1".to_owned()], 7).unwrap();
        fs::copy(dir.join("ca.pem"), dir.join("ca.crt")).unwrap();
        fs::write(dir.join("token"), "the-token\n").unwrap();
        fs::write(dir.join("namespace"), "chat").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = Tls::load(Files { authority: None, ..issued }).unwrap();
        let mut port = Port::new(listener, Some(tls), Protocol::Http);
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = port.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                asked.push(String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            asked
        });
        (Api::new(address, dir).unwrap(), asked)
    }

    #[tokio::test]
    async fn a_secret_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let created = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        let exists = "HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}";
        let refused = "HTTP/1.1 403 Forbidden\r\n\r\n{\"kind\":\"Status\",\"message\":\"secrets is forbidden\"}";
        let (api, asked) = api(dir.path(), vec![created, exists, refused]).await;
        assert!(api.create_secret("name", "a-secret").await.unwrap());
        assert!(!api.create_secret("name", "a-secret").await.unwrap());
        let error = api.create_secret("name", "a-secret").await.unwrap_err().to_string();
        assert!(error.ends_with("answered 403 Forbidden: secrets is forbidden"), "{error}");
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("POST /api/v1/namespaces/chat/secrets HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nauthorization: Bearer the-token\r\n"), "{asked}");
        assert!(asked.contains(&STANDARD.encode("a-secret")), "{asked}");
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Api::new("127.0.0.1:1".into(), dir.path()).is_err(), "nothing is mounted");
        let (api, _) = api(dir.path(), vec![]).await;
        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path()).unwrap();
        fs::copy(other.path().join("ca.pem"), dir.path().join("ca.crt")).unwrap();
        let mistrusting = Api::new(api.address.clone(), dir.path()).unwrap();
        assert!(matches!(mistrusting.create_secret("name", "x").await, Err(KubernetesError::Call { .. })));
    }
}
