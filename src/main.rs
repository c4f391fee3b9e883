//! The `berth` program: reads the command line and calls.

use berth::cli::{self, Request};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Request::Done(code) => ExitCode::from(code),
        Request::Serve(config, on_fork) => match berth::app::run(*config, on_fork) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cli::failed(&error),
        },
    }
}
