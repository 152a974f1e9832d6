//! The services as routes for a tonic server: one set for clients, one for the operator's socket.

use std::sync::Arc;

use axum::{
    Extension,
    middleware::{from_fn, map_response},
};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{ChatApi, admission::Admission, cluster::Operator, observe::observe, wire};
use chat::limits::REQUEST_BYTES_MAX;
use proto::{
    PUBLIC_DESCRIPTORS,
    chat::v1::{
        account_admin_service_server::AccountAdminServiceServer,
        admin_service_server::AdminServiceServer,
        chat_service_server::{ChatServiceServer, SERVICE_NAME as CHAT},
        cluster_service_server::ClusterServiceServer,
    },
};

/// Largest request of health and reflection, whose streams stay open: the name of a service or of a file.
const SMALL_BYTES_MAX: usize = 4096;

/// All routes of the client port: chat, cluster, health and, if the settings enable it, reflection. `ready` is the
/// reported health of the server and of the chat service. When its sender is dropped, both are not serving. After
/// `stop`, the health watches end. Needs a tokio runtime.
///
/// # Errors
/// The compiled-in descriptors are broken.
pub async fn client_routes(
    api: &ChatApi,
    ready: watch::Receiver<bool>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (mut reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, *ready.borrow()).await;
    tokio::spawn(async move {
        tokio::select! {
            () = follow(&reporter, ready) => {}
            () = stop => {}
        }
        report(&reporter, false).await;
        // This ends the streams.
        for service in ["", CHAT] {
            reporter.clear_service_status(service).await;
        }
    });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that a client without generated code can decode them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // Each version of the service includes its own descriptors. These are the other's.
    let v1 = reflection().register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
    let v1alpha = reflection().register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
    let routes = Routes::new(ChatServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health.max_decoding_message_size(SMALL_BYTES_MAX));
    if !api.inner.settings.reflection {
        return Ok(guarded(routes, api));
    }
    let v1 = v1.build_v1()?.max_decoding_message_size(SMALL_BYTES_MAX);
    let v1alpha = v1alpha.build_v1alpha()?.max_decoding_message_size(SMALL_BYTES_MAX);
    Ok(guarded(routes.add_service(v1).add_service(v1alpha), api))
}

/// All routes of the operator's socket.
pub fn admin_routes(api: &ChatApi) -> Routes {
    let admin = AdminServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let cluster = ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let accounts = AccountAdminServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let routes = Routes::new(admin).add_service(cluster).add_service(accounts);
    let routes = routes.into_axum_router().layer(Extension(Operator));
    guarded(routes.into(), api)
}

fn guarded(routes: Routes, api: &ChatApi) -> Routes {
    let admission = Admission::new(api.clone());
    let bounded = from_fn(move |request, next| Arc::clone(&admission).admit(request, next));
    let inner = Arc::clone(&api.inner);
    let observed = from_fn(move |request, next| observe(Arc::clone(&inner), request, next));
    routes.into_axum_router().layer(map_response(wire::rename_refusals)).layer(bounded).layer(observed).into()
}

async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", CHAT] {
        reporter.set_service_status(service, status).await;
    }
}

async fn follow(reporter: &HealthReporter, mut ready: watch::Receiver<bool>) {
    loop {
        let now = *ready.borrow_and_update();
        report(reporter, now).await;
        if ready.changed().await.is_err() {
            return;
        }
    }
}
