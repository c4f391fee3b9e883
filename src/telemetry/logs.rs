//! Log lines to standard error, as text or JSON.

use crate::config::{Log, LogFormat};
use parking_lot::Mutex;
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is no filter.
    #[error("log.level: {0}")]
    Filter(#[from] ParseError),
    /// Something else in the process logs already.
    #[error("logging was already set up: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The level cannot be changed.
    #[error("log.level cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

/// Sends the process's log lines to standard error. Once per process.
///
/// # Errors
///
/// If the filter is not valid or logging was already set up.
pub fn init(log: &Log) -> Result<Level, LogError> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (subscriber, level) = subscriber(log, BoxMakeWriter::new(std::io::stderr), colour)?;
    subscriber.try_init()?;
    Ok(level)
}

/// What is logged, which may be changed while the process runs.
#[derive(Clone)]
pub struct Level {
    handle: reload::Handle<Targets, Registry>,
    now: Arc<Mutex<String>>,
}

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Level").field(&*self.now.lock()).finish()
    }
}

impl Level {
    /// What is logged now, as `log.level` has it.
    pub fn now(&self) -> String {
        self.now.lock().clone()
    }

    /// Logs this from now on; what was logged before.
    ///
    /// # Errors
    /// If it is no filter, or logging has ended.
    pub fn change(&self, level: &str) -> Result<String, LogError> {
        let filter: Targets = level.parse()?;
        let mut now = self.now.lock();
        self.handle.reload(filter)?;
        Ok(std::mem::replace(&mut *now, level.to_owned()))
    }
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber(log: &Log, writer: BoxMakeWriter, colour: bool) -> Result<(Subscriber, Level), LogError> {
    let (filter, handle) = reload::Layer::new(log.level.parse::<Targets>()?);
    let level = Level { handle, now: Arc::new(Mutex::new(log.level.clone())) };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Ok((Box::new(tracing_subscriber::registry().with(filter).with(layer)), level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;

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
        let (subscriber, _) = subscriber(&log, BoxMakeWriter::new(move || writer.clone()), false).unwrap();
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

    #[test]
    fn the_level_changes_while_lines_are_written() {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { level: "info".to_owned(), format: LogFormat::Text };
        let (subscriber, level) =
            subscriber(&log, BoxMakeWriter::new(move || writer.clone()), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("one");
            assert_eq!(level.change("debug").unwrap(), "info");
            tracing::debug!("two");
            assert!(level.change("a=b=c").is_err());
            assert_eq!(level.now(), "debug");
            level.change("off").unwrap();
            tracing::error!("three");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(text.lines().count() == 1 && text.contains("two"), "{text}");
    }
}
