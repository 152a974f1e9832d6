//! A trace collector: receives OTLP over gRPC, with the protocol's own types, and stores the spans.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span, and the name of its node.
#[derive(Debug, Clone)]
pub struct Taken {
    pub node: String,
    pub span: Span,
}

impl Taken {
    /// The value of a text attribute.
    pub fn text(&self, key: &str) -> Option<&str> {
        let attribute = self.span.attributes.iter().find(|attribute| attribute.key == key)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }
}

/// A collector. Clones share the received spans.
#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), taken: Arc::default() };
        let service = TraceServiceServer::new(collector.clone()).max_decoding_message_size(64 << 20);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        collector
    }

    /// The spans received so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }

    /// The spans of one trace received so far.
    pub fn of(&self, trace_id: u128) -> Vec<Taken> {
        let mut taken = self.taken();
        taken.retain(|taken| taken.span.trace_id == trace_id.to_be_bytes());
        taken
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let attributes = of_resource.resource.unwrap().attributes;
            let instance = attributes.into_iter().find(|attribute| attribute.key == "service.instance.id").unwrap();
            let Some(Value::StringValue(node)) = instance.value.unwrap().value else { panic!("a name is a text") };
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.taken.lock().unwrap().extend(spans.map(|span| Taken { node: node.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
