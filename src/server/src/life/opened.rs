//! The first stage: the files are open and locked.

use std::sync::Arc;

use super::{
    bound::Bound,
    core::{Core, Stop},
};
use crate::{
    Host, ServerError,
    config::Config,
    delivery::{Hub, Watch},
    files::{self, Files},
    observe::{Counted, Ready},
    telemetry::metrics::Metrics,
};

/// A node whose files are open and locked, and belong to a node of this name.
pub(super) struct Opened<H> {
    host: H,
    core: Core,
    files: Files,
}

impl<H: Host> Opened<H> {
    pub(super) async fn open(host: H, config: Config) -> Result<Self, ServerError> {
        let (metrics, tracer, stop) = (Metrics::new(&config.name), host.tracer(), Stop(host.stop()));
        let files = files::open(&config, &metrics, &tracer, &host.background()).await?;
        if let Some(identity) = files.log.identity().filter(|identity| identity.name != config.name) {
            return Err(ServerError::WrongName { configured: config.name, stored: identity.name });
        }
        let applied = files.state.applied()?;
        let counted = Arc::new(Counted(metrics.clone()));
        let watch = Watch { observer: counted.clone(), tracer: tracer.clone() };
        let core = Core {
            hub: Hub::watched(applied.revision, applied.clock, watch),
            ready: Ready::new(metrics.clone()),
            node: Arc::default(),
            services: Arc::default(),
            receiver: Arc::default(),
            config,
            metrics,
            tracer,
            stop,
            counted,
        };
        Ok(Self { host, core, files })
    }

    /// Binds all ports, and serves those that do not need a cluster. `None`: a stop was requested first.
    pub(super) async fn bind(self, files_max: usize) -> Result<Option<Bound<H>>, ServerError> {
        Bound::bind(self.host, self.core, self.files, files_max).await
    }
}
