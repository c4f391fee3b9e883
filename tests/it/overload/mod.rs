//! More than a broker can take: memory that runs short, quotas, queues that are full.

mod memory;
mod policy;
mod quotas;
