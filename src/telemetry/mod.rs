//! Logs and metrics: what an operator sees. Knows nothing of MQTT; nothing here blocks or fails a caller.

mod cells;
mod labels;
pub mod logs;
pub mod losses;
pub mod metrics;
mod repeats;

pub use cells::{Counter, Family, Gauge, Histogram, Label};
pub use losses::{About, Loss, Whose};
pub use metrics::Metrics;
pub use repeats::{REPEATS_MAX, Repeats};
