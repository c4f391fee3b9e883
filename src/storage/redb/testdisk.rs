//! A disk in memory for tests: remembers what was written when, and fails on demand.

use super::medium::{Backend, Medium};
use parking_lot::{Condvar, Mutex, MutexGuard};
use redb::StorageBackend;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Something done to the disk.
#[derive(Clone, Debug)]
pub(super) enum Event {
    SetLen(u64),
    Write(u64, Vec<u8>),
    Sync,
    /// The file was put in place.
    Publish,
}

/// How the disk fails.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// The disk has so many bytes.
    pub(super) space: Option<u64>,
    /// Writes, truncations and syncs left until they fail, with EIO, until this is taken back.
    pub(super) changes_left: Option<u64>,
    /// Reads left until they fail likewise.
    pub(super) reads_left: Option<u64>,
    /// Writes, truncations and syncs hang until this is taken back.
    pub(super) hangs: bool,
}

#[derive(Default)]
struct State {
    data: Vec<u8>,
    published: bool,
    /// How to undo what was done since the last sync.
    unsynced: Vec<Undo>,
    events: Vec<Event>,
    recording: bool,
    faults: Faults,
    failed: u64,
}

enum Undo {
    Write(usize, Vec<u8>),
    SetLen(usize, Vec<u8>),
}

/// A disk; clones are the same.
#[derive(Clone, Default)]
pub(super) struct TestDisk(Arc<Mutex<State>>, Arc<Condvar>);

impl std::fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestDisk")
    }
}

impl TestDisk {
    /// A disk with a file on it.
    pub(super) fn with(data: Vec<u8>) -> TestDisk {
        let disk = TestDisk::default();
        disk.0.lock().data = data;
        disk.0.lock().published = true;
        disk
    }

    /// Begins to remember what is done.
    pub(super) fn record(&self) {
        self.0.lock().recording = true;
    }

    /// What was done since [`TestDisk::record`].
    pub(super) fn events(&self) -> Vec<Event> {
        self.0.lock().events.clone()
    }

    pub(super) fn events_len(&self) -> usize {
        self.0.lock().events.len()
    }

    pub(super) fn data(&self) -> Vec<u8> {
        self.0.lock().data.clone()
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
        self.1.notify_all();
    }

    /// The disk, once it does not hang.
    fn awake(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock();
        self.1.wait_while(&mut state, |state| state.faults.hangs);
        state
    }

    /// How often it has failed.
    pub(super) fn failed(&self) -> u64 {
        self.0.lock().failed
    }
}

impl State {
    fn fail(&mut self, errno: rustix::io::Errno) -> io::Error {
        self.failed += 1;
        errno.into()
    }

    /// Fails if it is time to.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.faults.changes_left {
            Some(0) => Err(self.fail(rustix::io::Errno::IO)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn done(&mut self, event: impl FnOnce() -> Event) {
        if self.recording {
            self.events.push(event());
        }
    }

    fn set_len(&mut self, len: usize) {
        let cut = self.data.get(len..).unwrap_or_default().to_vec();
        self.unsynced.push(Undo::SetLen(self.data.len(), cut));
        self.data.resize(len, 0);
    }

    /// As kernels do when a sync fails: what was to be written is forgotten.
    fn forget_unsynced(&mut self) {
        while let Some(undo) = self.unsynced.pop() {
            match undo {
                Undo::Write(at, old) => self.data[at..at + old.len()].copy_from_slice(&old),
                Undo::SetLen(len, cut) => {
                    self.data.truncate(len);
                    self.data.resize(len - cut.len(), 0);
                    self.data.extend(cut);
                }
            }
        }
    }
}

impl StorageBackend for TestDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        match &mut state.faults.reads_left {
            Some(0) => return Err(state.fail(rustix::io::Errno::IO)),
            Some(left) => *left -= 1,
            None => {}
        }
        let found = usize::try_from(offset).ok().and_then(|at| state.data.get(at..)?.get(..out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.awake();
        state.change()?;
        if state.faults.space.is_some_and(|space| len > space) && len > state.data.len() as u64 {
            return Err(state.fail(rustix::io::Errno::NOSPC));
        }
        state.set_len(usize::try_from(len).unwrap());
        state.done(|| Event::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.awake();
        if let Err(error) = state.change() {
            state.forget_unsynced();
            return Err(error);
        }
        state.unsynced.clear();
        state.done(|| Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.awake();
        state.change()?;
        let at = usize::try_from(offset).unwrap();
        let end = at + data.len();
        if end > state.data.len() {
            state.set_len(end);
        }
        let old = state.data[at..end].to_vec();
        state.unsynced.push(Undo::Write(at, old));
        state.data[at..end].copy_from_slice(data);
        state.done(|| Event::Write(offset, data.to_vec()));
        Ok(())
    }
}

impl Medium for TestDisk {
    fn path(&self) -> &Path {
        Path::new("/test/journal.redb")
    }

    fn exists(&self) -> io::Result<bool> {
        Ok(self.0.lock().published)
    }

    fn create(&self) -> io::Result<Backend> {
        StorageBackend::set_len(self, 0)?;
        self.open()
    }

    fn publish(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        state.published = true;
        state.done(|| Event::Publish);
        Ok(())
    }

    fn open(&self) -> io::Result<Backend> {
        Ok(Backend(Box::new(self.clone())))
    }

    fn size(&self) -> u64 {
        self.0.lock().data.len() as u64
    }
}

/// A stream of numbers from a seed, good enough to choose by.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % sides.max(1)
    }
}

/// The disk as a power cut may leave it: all that was synced, and of what was not, whatever `dice` says, in halves too.
pub(super) struct Replay {
    synced: Vec<u8>,
    since: Vec<Event>,
    published: bool,
}

impl Replay {
    pub(super) fn new() -> Replay {
        Replay { synced: Vec::new(), since: Vec::new(), published: false }
    }

    pub(super) fn push(&mut self, event: Event) {
        match event {
            Event::Sync => {
                for event in self.since.drain(..) {
                    Replay::play(&mut self.synced, &event, usize::MAX);
                }
            }
            Event::Publish => self.published = true,
            event => self.since.push(event),
        }
    }

    fn play(data: &mut Vec<u8>, event: &Event, bytes: usize) {
        match event {
            Event::SetLen(len) => data.resize(usize::try_from(*len).unwrap(), 0),
            Event::Write(at, written) => {
                let at = usize::try_from(*at).unwrap();
                let written = &written[..written.len().min(bytes)];
                if data.len() < at + written.len() {
                    data.resize(at + written.len(), 0);
                }
                data[at..at + written.len()].copy_from_slice(written);
            }
            Event::Sync | Event::Publish => {}
        }
    }

    /// The disk after a power cut now.
    pub(super) fn cut(&self, dice: &mut Dice) -> TestDisk {
        if !self.published {
            return TestDisk::default();
        }
        let mut data = self.synced.clone();
        let keep = dice.roll(4);
        for event in &self.since {
            match (keep, dice.roll(4)) {
                (0, _) => break,
                (1, _) => Replay::play(&mut data, event, usize::MAX),
                (_, 0) => {}
                (_, 1) => Replay::play(&mut data, event, 512 * dice.roll(9) as usize),
                _ => Replay::play(&mut data, event, usize::MAX),
            }
        }
        TestDisk::with(data)
    }
}
