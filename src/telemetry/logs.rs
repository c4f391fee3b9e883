//! Log lines to standard error, as text or JSON.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is no filter.
    #[error("log.level: {0}")]
    Filter(#[from] ParseError),
    /// Something else in the process logs already.
    #[error("logging was already set up: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends the process's log lines to standard error. Once per process.
///
/// # Errors
///
/// If the filter is not valid or logging was already set up.
pub fn init(log: &Log) -> Result<(), LogError> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    subscriber(log, BoxMakeWriter::new(std::io::stderr), colour)?.try_init()?;
    Ok(())
}

fn subscriber(
    log: &Log,
    writer: BoxMakeWriter,
    colour: bool,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError> {
    let filter: Targets = log.level.parse()?;
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Ok(Box::new(tracing_subscriber::registry().with(layer).with(filter)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(level: &str, format: LogFormat) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { level: level.to_owned(), format };
        let subscriber = subscriber(&log, BoxMakeWriter::new(move || writer.clone()), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("too fine");
            tracing::info!(client = 7, "hello");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn text_lines() {
        let lines = lines("info", LogFormat::Text);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("INFO") && lines[0].ends_with("hello client=7"), "{lines:?}");
    }

    #[test]
    fn json_lines() {
        let lines = lines("info", LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (&line["level"], &line["message"], &line["client"]),
            (&"INFO".into(), &"hello".into(), &7.into())
        );
    }

    #[test]
    fn the_level_filters() {
        assert_eq!(lines("off", LogFormat::Text), Vec::<String>::new());
        assert_eq!(lines("debug", LogFormat::Text).len(), 2);
        assert_eq!(lines("info,berth::telemetry=debug", LogFormat::Text).len(), 2);
        assert_eq!(lines("debug,berth::telemetry=warn", LogFormat::Text).len(), 0);
    }
}
