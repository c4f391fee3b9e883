//! The command line: turns arguments into a [`Request`], and answers everything that needs no broker.

use crate::auth::passwd::{self, Passwd};
use crate::config::{Config, Flag, OnFork, Sources, reference};
use crate::ctl::{self, Ctl, Secrets};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Wrong arguments or a wrong configuration.
pub const EXIT_USAGE: u8 = 2;

/// The broker could not start or failed.
pub const EXIT_FAILURE: u8 = 1;

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To run the broker, and what to do with a journal that is a copy of a newer one.
    Serve(Box<Config>, OnFork),
    /// Nothing more: all was said. Exit with this code.
    Done(u8),
}

#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    about = "An MQTT 3.1, 3.1.1 and 5.0 broker",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serving: Serving,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker (what berth does without a command)
    Serve(Serving),
    /// Look at the configuration without running the broker
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Ask a running broker, or tell it to do something
    Ctl(Box<Ctl>),
    /// Set a user's password in a file of users, or remove the user. The password comes from the terminal or, else, is the first
    /// line of standard input
    Passwd(Passwd),
    /// Print what completes this program's arguments in a shell, such as: source <(berth completion bash)
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    /// What completes the arguments of the whole command line.
    fn completion(self) -> String {
        let shell = match self {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check file, environment and flags as `serve` would, and say all that is wrong
    Check(Options),
    /// Print every option with its documentation and default, as a YAML file
    Defaults,
}

#[derive(Debug, Args)]
struct Options {
    /// Configuration file (YAML) [default: $BERTH_CONFIG, else ./berth.yaml or /etc/berth/berth.yaml if there is one]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set an option, such as --set limits.max_connections=500; repeatable
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Where to listen for MQTT: listeners.tcp.address
    #[arg(short, long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Directory of the journal: storage.dir
    #[arg(short, long, value_name = "DIR")]
    data_dir: Option<String>,
    /// What to log: log.level
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Args)]
struct Serving {
    #[command(flatten)]
    options: Options,
    /// For once, if the journal is an older copy of the one that etcd knows: rename it and begin with an empty one
    #[arg(long)]
    set_aside_journal: bool,
    /// For once, if the journal is an older copy of the one that etcd knows: use it all the same
    #[arg(long, conflicts_with = "set_aside_journal")]
    accept_older_journal: bool,
}

impl Serving {
    fn request(self) -> Request {
        let on_fork = match (self.set_aside_journal, self.accept_older_journal) {
            (true, _) => OnFork::SetAside,
            (false, true) => OnFork::Accept,
            (false, false) => OnFork::Refuse,
        };
        match load(self.options.sources()) {
            Ok(config) => Request::Serve(config, on_fork),
            Err(code) => Request::Done(code),
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Options {
    fn sources(self) -> Sources {
        let named = [
            ("--listen", "listeners.tcp.address", self.listen),
            ("--data-dir", "storage.dir", self.data_dir),
            ("--log-level", "log.level", self.log_level),
        ];
        let set = self.set.iter().map(|(key, value)| Flag::set(key, value));
        let named = named
            .into_iter()
            .filter_map(|(name, key, value)| value.map(|value| Flag { name, key: key.to_owned(), value }));
        Sources::of_process(self.config, set.chain(named).collect())
    }
}

/// Reads the arguments (the first is the program's name). What needs no broker is done here and printed.
pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Request {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(answer) => {
            // --help and --version come here too. Nobody is left to tell if the terminal is gone.
            let _ = answer.print();
            return Request::Done(if answer.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match cli.command.unwrap_or(Command::Serve(cli.serving)) {
        Command::Serve(serving) => serving.request(),
        Command::Config(ConfigCommand::Check(options)) => {
            let sources = options.sources();
            let from = sources.file.as_ref().map_or("no file".to_owned(), |f| f.display().to_string());
            Request::Done(match load(sources) {
                Ok(config) => {
                    config.warnings().iter().for_each(|warning| complain(&format!("warning: {warning}")));
                    say(&format!("the configuration is valid ({from}, environment, flags)\n"))
                }
                Err(code) => code,
            })
        }
        Command::Config(ConfigCommand::Defaults) => Request::Done(say(&reference::yaml())),
        Command::Ctl(ctl) => Request::Done(ctl::run(&ctl, &Secrets { read: passwd::read_password, hashed })),
        Command::Passwd(args) => Request::Done(match passwd::run(&args) {
            Ok(done) => say(&done),
            Err(error) => {
                complain(&error);
                EXIT_FAILURE
            }
        }),
        Command::Completion { shell } => Request::Done(say(&shell.completion())),
        Command::Version => Request::Done(say(concat!("berth ", env!("CARGO_PKG_VERSION"), "\n"))),
    }
}

/// The hash of a password as files have it, and keys for SCRAM-SHA-256 if those are asked for.
fn hashed(password: &[u8], scram: bool) -> Result<(String, Option<String>), String> {
    let user = passwd::new_user(password, scram)?;
    Ok((user.hash.to_string(), user.scram.as_ref().map(ToString::to_string)))
}

/// Says on standard error why the broker failed.
pub fn failed(error: &dyn std::error::Error) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(EXIT_FAILURE)
}

fn load(sources: Sources) -> Result<Box<Config>, u8> {
    Config::load(&sources).map(Box::new).map_err(|problems| {
        complain(&problems.to_string());
        EXIT_USAGE
    })
}

/// Prints; a closed pipe (`berth config defaults | head`) is no reason to panic.
fn say(text: &str) -> u8 {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => EXIT_FAILURE,
    }
}

fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "berth: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(args: &[&str]) -> Config {
        match parse(["berth"].iter().chain(args)) {
            Request::Serve(config, OnFork::Refuse) => *config,
            Request::Serve(_, other) => panic!("{other:?}"),
            Request::Done(code) => panic!("exit {code}"),
        }
    }

    fn done(args: &[&str]) -> u8 {
        match parse(["berth"].iter().chain(args)) {
            Request::Serve(..) => panic!("serves"),
            Request::Done(code) => code,
        }
    }

    #[test]
    fn help_names_every_version_of_mqtt_that_is_spoken() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("MQTT 3.1, 3.1.1 and 5.0"), "{help}");
    }

    #[test]
    fn serve_is_the_default() {
        let args =
            ["--listen", "127.0.0.1:0", "-d", "/tmp/x", "--log-level", "warn", "--set", "limits.max_qos=1"];
        let config = serve(&args);
        assert_eq!((config.listeners.get("tcp").unwrap().address[0].port(), config.limits.max_qos), (0, 1));
        assert_eq!((config.storage.dir.to_str(), &*config.log.level), (Some("/tmp/x"), "warn"));
        let with_command: Vec<&str> = ["serve"].into_iter().chain(args).collect();
        assert_eq!(serve(&with_command), config);
    }

    #[test]
    fn named_flags_win_over_set() {
        let config = serve(&["--listen", "127.0.0.1:7", "--set", "listeners.tcp.address=127.0.0.1:8"]);
        assert_eq!(config.listeners.get("tcp").unwrap().address[0].port(), 7);
    }

    #[test]
    fn what_to_do_with_a_fork_is_asked_for_once() {
        for (args, expected) in [
            (&["--set-aside-journal"][..], OnFork::SetAside),
            (&["serve", "--set-aside-journal"], OnFork::SetAside),
            (&["--accept-older-journal"], OnFork::Accept),
        ] {
            let request = parse(["berth"].iter().chain(args));
            assert!(
                matches!(request, Request::Serve(_, on_fork) if on_fork == expected),
                "{args:?}: {request:?}"
            );
        }
    }

    #[test]
    fn exit_codes() {
        for args in
            [&["--help"][..], &["--version"], &["version"], &["config", "defaults"], &["config", "check"]]
        {
            assert_eq!(done(args), 0, "{args:?}");
        }
        for args in [
            &["--nonsense"][..],
            &["stop"],
            &["--set-aside-journal", "--accept-older-journal"],
            &["config", "check", "--set-aside-journal"],
            &["--set", "novalue"],
            &["--set", "limits.max_qos=9"],
            &["serve", "--listen", "0.0.0.0:1883"],
            &["config", "check", "--config", "/nonexistent.yaml"],
        ] {
            assert_eq!(done(args), EXIT_USAGE, "{args:?}");
        }
    }
}
