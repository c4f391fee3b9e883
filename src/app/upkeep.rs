//! What an operator asks of a node's listeners and options, and does to its sessions and topics.

use super::desk::Desk;
use crate::clock;
use crate::mqtt::QoS;
use crate::names::shown;
use crate::node::administer::{PublishError, Purge, Purged};
use crate::server::http::{
    Answer, ApiError, ListenerList, Publication, Published, ShownConfig, ShownOption, UpkeepOperator,
};
use std::time::Duration;

impl UpkeepOperator for Desk {
    fn listeners(&self) -> Result<ListenerList, ApiError> {
        let listeners = self.running()?.listeners.iter().map(|view| view.shown()).collect();
        Ok(ListenerList { listeners })
    }

    fn config(&self) -> ShownConfig {
        // Until the node runs nothing can have been read again.
        let settings = match self.running() {
            Ok(process) => process.reload.shown(),
            Err(_) => self.config.settings.clone(),
        };
        let options =
            settings.into_iter().map(|s| ShownOption { key: s.key, value: s.value, origin: s.source });
        let file = self.config.sources.file.as_ref().map(|file| file.display().to_string());
        ShownConfig { file, options: options.collect() }
    }

    fn purge(&self, which: Purge, really: bool) -> Answer<Purged> {
        let process = self.running().cloned();
        Box::pin(async move {
            let process = process?;
            let done = tokio::task::spawn_blocking(move || {
                let purged = process.node.purge_sessions(&which, really, clock::now());
                if let Ok(Purged { ended, .. }) = purged
                    && really
                {
                    tracing::info!(pattern = %shown(&which.pattern), ended, "an operator ended sessions");
                }
                purged
            });
            let purged = done.await.map_err(|e| ApiError::Unavailable(e.to_string()))?;
            purged.map_err(ApiError::Unavailable)
        })
    }

    fn publish(&self, publication: Publication) -> Answer<Published> {
        let process = self.running().cloned();
        Box::pin(async move {
            let process = process?;
            let Publication { topic, payload, qos, retain } = publication;
            let qos = QoS::from_bits(qos).ok_or_else(|| ApiError::Invalid(format!("qos={qos}")))?;
            let publishing = process.node.publish_as_operator(&topic, &payload, qos, retain, clock::now());
            let limit = Duration::from_millis(process.node.broker.limits.publish_timeout_ms());
            let matched = tokio::time::timeout(limit, publishing)
                .await
                .map_err(|_| {
                    let why =
                        "the message was not safe within publish.timeout; it may be delivered all the same";
                    ApiError::Unavailable(why.to_owned())
                })?
                .map_err(|error| match error {
                    PublishError::Invalid(why) => ApiError::Invalid(why),
                    PublishError::Refused(why) => ApiError::Unavailable(why),
                })?;
            Ok(Published { topic, bytes: payload.len(), matched })
        })
    }
}
