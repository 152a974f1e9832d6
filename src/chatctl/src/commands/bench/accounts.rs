//! The accounts of a benchmark.
//!
//! A registration hashes a password, which takes tens of milliseconds of a processor, and so does a login. Through an
//! admin socket, an account is created without a password: thousands of them take seconds.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Code, codegen::http::HeaderValue};
use uuid::Uuid;

use crate::{
    commands::operator::{account_admin, admin_error, request},
    context::Context,
    failure::Failure,
};
use client::{Client, ClientError};
use proto::chat::v1::AddAccountRequest;

/// Accounts that are created at the same time.
const AT_ONCE: usize = 64;

/// An account with a session.
pub(super) struct Account {
    pub(super) name: String,
    /// The value of the `authorization` header.
    pub(super) token: HeaderValue,
}

/// An account that can log in.
pub(super) struct Registered {
    pub(super) account: Account,
    pub(super) password: String,
}

/// Names that no other run has.
pub(super) struct Names {
    run: String,
    last: u32,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { run: Uuid::new_v4().simple().to_string()[..8].to_owned(), last: 0 }
    }

    fn next(&mut self) -> String {
        self.last += 1;
        format!("bench-{}-{}", self.run, self.last)
    }
}

/// Registers accounts, and logs in to them.
pub(super) async fn register(cluster: &Client, names: &mut Names, count: u32) -> Result<Vec<Registered>, Failure> {
    let mut registered = Vec::with_capacity(count as usize);
    for _ in 0..count {
        // The password is forgotten after the run.
        let (name, password) = (names.next(), Uuid::new_v4().to_string());
        cluster.create_account(&name, &password).await?;
        let token = cluster.login(&name, &password).await?.token;
        registered.push(Registered { account: Account::new(name, &token)?, password });
    }
    Ok(registered)
}

/// Creates accounts as an operator does.
pub(super) async fn add(
    context: &Context,
    socket: &Path,
    names: &mut Names,
    count: u32,
) -> Result<Vec<Account>, Failure> {
    let admin = account_admin(context, socket).await?;
    let added = (0..count).map(|_| {
        let (name, mut admin) = (names.next(), admin.clone());
        async move {
            let message = AddAccountRequest { username: name.clone(), invitation: String::new() };
            let added = admin.add_account(request(context, message)).await.map_err(admin_error)?;
            Account::new(name, &added.into_inner().token)
        }
    });
    stream::iter(added).buffered(AT_ONCE).try_collect().await
}

impl Account {
    fn new(name: String, token: &str) -> Result<Self, Failure> {
        // The account is disposable, so unlike real tokens this one may be kept in HTTP/2 header compression tables.
        let token = HeaderValue::try_from(format!("Bearer {token}"));
        let token = token.map_err(|_| ClientError::local(Code::Internal, "the token is malformed"))?;
        Ok(Self { name, token })
    }
}
