//! The services as routes for a tonic server: one set for clients, one for the operator's socket.

use axum::middleware::map_response;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{ChatApi, wire};
use crate::{
    chat::limits::REQUEST_BYTES_MAX,
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
    };
    let routes = Routes::new(ChatServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(renamed(routes))
}

/// Everything for the operator's socket.
pub fn admin_routes(api: &ChatApi) -> Routes {
    let admin = AdminServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let cluster = ClusterServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    renamed(Routes::new(admin).add_service(cluster))
}

fn renamed(routes: Routes) -> Routes {
    routes.into_axum_router().layer(map_response(wire::rename_refusals)).into()
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
