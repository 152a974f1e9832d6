//! The services as routes for a tonic server: one set for clients, one for the operator's socket.

use std::sync::Arc;

use axum::{
    extract::Request,
    middleware::{Next, from_fn, map_response},
    response::Response,
};
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{ChatApi, observe::observe, status, wire};
use crate::{
    chat::limits::{REQUEST_BYTES_MAX, REQUESTS_AT_ONCE_MAX},
    proto::{
        PUBLIC_DESCRIPTORS,
        chat::v1::{
            admin_service_server::AdminServiceServer,
            chat_service_server::{ChatServiceServer, SERVICE_NAME as CHAT},
            cluster_service_server::ClusterServiceServer,
        },
    },
};

/// Everything for the client port: chat, cluster, health, reflection. `ready` is what health says, of the server
/// and of the chat service; when its sender is gone, both are not serving. Needs a tokio runtime.
///
/// Fails only when the descriptors that were compiled in are broken.
pub async fn client_routes(
    api: &ChatApi,
    ready: watch::Receiver<bool>,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, *ready.borrow()).await;
    tokio::spawn(follow(reporter, ready));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors: a client without generated code can read them, too.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // Each version knows itself, and is told of the other.
    let v1 = reflection().register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
    let v1alpha = reflection().register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
    let routes = Routes::new(ChatServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health)
        .add_service(v1.build_v1()?)
        .add_service(v1alpha.build_v1alpha()?);
    Ok(guarded(routes, api))
}

/// Everything for the operator's socket.
pub fn admin_routes(api: &ChatApi) -> Routes {
    let admin = AdminServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let cluster = ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    guarded(Routes::new(admin).add_service(cluster), api)
}

fn guarded(routes: Routes, api: &ChatApi) -> Routes {
    let places = Arc::new(Semaphore::new(REQUESTS_AT_ONCE_MAX));
    let bounded = from_fn(move |request, next| admit(places.clone(), request, next));
    let inner = Arc::clone(&api.inner);
    let observed = from_fn(move |request, next| observe(Arc::clone(&inner), request, next));
    routes.into_axum_router().layer(map_response(wire::rename_refusals)).layer(bounded).layer(observed).into()
}

/// Refuses a request when there are too many, before its body is received: connections alone do not bound memory.
async fn admit(places: Arc<Semaphore>, request: Request, next: Next) -> Response {
    match places.try_acquire() {
        Ok(_place) => next.run(request).await,
        Err(_) => status::overloaded("the node has too many requests at once").into_http(),
    }
}

async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", CHAT] {
        reporter.set_service_status(service, status).await;
    }
}

async fn follow(reporter: HealthReporter, mut ready: watch::Receiver<bool>) {
    loop {
        let now = *ready.borrow_and_update();
        report(&reporter, now).await;
        if ready.changed().await.is_err() {
            report(&reporter, false).await;
            return;
        }
    }
}
