//! Names that are too long, or too odd, for a command line: `-` reads one from standard input.

use super::client::Failure;
use std::io::Read;

/// Bytes of a client identifier, a topic name or a topic filter, the specification's own bound.
const NAME_BYTES_MAX: usize = 65_535;

/// The names of one command.
#[derive(Debug, Default)]
pub(super) struct Names {
    read: bool,
}

impl Names {
    /// `given`, or what standard input has if that is `-`.
    pub(super) fn take(&mut self, given: &str) -> Result<String, Failure> {
        if given != "-" {
            return Ok(given.to_owned());
        }
        if std::mem::replace(&mut self.read, true) {
            return Err(Failure::Name("standard input gives one name only: - can be used once".to_owned()));
        }
        read(std::io::stdin()).map_err(Failure::Name)
    }
}

/// One name. A newline at its end is not part of it, for most programs write one; a second one would be.
fn read(input: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    input
        .take(NAME_BYTES_MAX as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("standard input cannot be read: {e}"))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > NAME_BYTES_MAX {
        return Err(format!("what standard input has is no name: it is longer than {NAME_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "what standard input has is no name: it is not UTF-8".to_owned())
}

/// Bytes of a payload: more does not fit into a request to the broker.
const PAYLOAD_BYTES_MAX: usize = 700_000;

/// All of a payload, as it is.
pub(super) fn payload(input: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    input
        .take(PAYLOAD_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("standard input cannot be read: {e}"))?;
    match bytes.len() > PAYLOAD_BYTES_MAX {
        true => {
            Err(format!("the payload is longer than {PAYLOAD_BYTES_MAX} bytes: publish it as a client does"))
        }
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_whole() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        for (input, name) in
            [("a\n", "a"), ("a", "a"), ("a\n\n", "a\n"), ("", ""), ("-", "-"), (&longest, &longest)]
        {
            assert_eq!(read(input.as_bytes()).unwrap(), name);
        }
        assert_eq!(read(format!("{longest}\n").as_bytes()).unwrap(), longest);
        for wrong in [format!("{longest}y").into_bytes(), format!("{longest}yz\n").into_bytes(), vec![0xFF]] {
            assert!(read(&wrong[..]).unwrap_err().contains("no name"));
        }
    }
}
