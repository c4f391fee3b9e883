//! This node's own routes: which filters its sessions have, how often, and what of that the cluster has been told.
//!
//! The first subscriber of a filter adds its route at once, and so does the first persistent one; everything else (the last
//! one has left, another weight of a shared subscription) is told a few seconds later, if it still holds then. That the last
//! persistent one has left is told soon: if this node went first, its route would hold publishes for nobody.

use crate::broker::handle::Handle;
use crate::hashing::HashMap;
use crate::ports::{BoxFuture, Coordinator, Revision, RouteChange, Tasks};
use crate::sync::level::Bell;
use crate::topic::Filter;
use futures_util::FutureExt;
use futures_util::future::{Either, Shared, join_all, select};
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// How long a change that nobody waits for may be kept back, milliseconds.
const LAZY_MS: u64 = 3_000;

/// How long a removed route may be kept back if publishes of other nodes would be held for it once this node is gone, milliseconds.
const SOON_MS: u64 = 100;

/// When a route is known to the store.
#[derive(Clone, Debug)]
enum Written {
    /// Not told yet: this node has not started.
    Untold,
    Pending(Shared<BoxFuture<Revision>>),
    At(Revision),
}

#[derive(Debug)]
struct Local {
    members: u32,
    persistent: u32,
    /// What the cluster has been told: whether persistent, and the weight.
    told: Option<(bool, u32)>,
    written: Written,
    /// It is in the list of what is to be looked at.
    listed: bool,
}

impl Local {
    /// What the cluster should be told.
    fn wanted(&self, shared: bool) -> (bool, u32) {
        (self.persistent > 0, if shared { self.members } else { 1 })
    }
}

#[derive(Debug, Default)]
struct Table {
    started: bool,
    routes: HashMap<Arc<str>, Local>,
    /// Filters to be looked at when the lazy changes are due.
    lazy: Vec<Arc<str>>,
    /// The last write of lazy changes.
    told: Option<Shared<BoxFuture<Revision>>>,
}

/// Filters that a session has just subscribed to, and whose SUBACK has not left.
#[derive(Clone, Debug)]
pub struct NewFilters {
    /// The session.
    pub session: Arc<Handle>,
    /// The filters; shared subscriptions are left out.
    pub filters: Vec<Arc<str>>,
}

/// Routes that must be written before a subscriber may rely on them.
#[derive(Clone, Debug, Default)]
pub struct RouteWait {
    revision: Revision,
    pending: Vec<Shared<BoxFuture<Revision>>>,
    wrote: bool,
    /// Filters that are new to a session.
    young: Option<NewFilters>,
}

impl RouteWait {
    fn add(&mut self, written: &Written) {
        match written {
            Written::Untold => {}
            Written::At(revision) => self.revision = self.revision.max(*revision),
            Written::Pending(p) => match p.peek() {
                Some(revision) => self.revision = self.revision.max(*revision),
                // The filters of one SUBSCRIBE share one write.
                None if self.pending.iter().any(|o| o.ptr_eq(p)) => {}
                None => self.pending.push(p.clone()),
            },
        }
    }

    /// Names the new subscriptions of a session whose SUBACK waits for the route.
    pub fn of_young(mut self, session: Arc<Handle>, filters: Vec<Arc<str>>) -> RouteWait {
        self.young = (!filters.is_empty()).then_some(NewFilters { session, filters });
        self
    }

    /// Takes the new subscriptions that wait for the routes.
    pub fn take_young(&mut self) -> Option<NewFilters> {
        self.young.take()
    }

    /// The revision at which all routes are written, if that is known.
    pub fn known(&self) -> Option<Revision> {
        self.pending.is_empty().then_some(self.revision)
    }

    /// Whether some of the routes are written for this very call: their revision is newer than the call.
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// Completes with the revision at which all routes are written.
    pub fn written(self) -> BoxFuture<Revision> {
        Box::pin(async move { join_all(self.pending).await.into_iter().fold(self.revision, Revision::max) })
    }
}

/// Which filters the sessions of this node have, how often, and what of that the cluster has been told.
pub struct LocalRoutes {
    coordinator: Arc<dyn Coordinator>,
    tasks: Arc<dyn Tasks>,
    table: Arc<Mutex<Table>>,
    bell: Arc<Bell>,
    /// Rung besides when a change is to be told soon.
    soon: Arc<Bell>,
}

impl LocalRoutes {
    /// The routes of a node without subscriptions. The cluster is told nothing before [`LocalRoutes::start`].
    pub fn new(coordinator: Arc<dyn Coordinator>, tasks: Arc<dyn Tasks>) -> LocalRoutes {
        LocalRoutes { coordinator, tasks, table: Arc::default(), bell: Arc::default(), soon: Arc::default() }
    }

    /// Tells the cluster every route there is, and each new one from now on.
    pub fn start(self: &Arc<LocalRoutes>) {
        let mut table = self.table.lock();
        let mut changes = Vec::with_capacity(table.routes.len());
        for (filter, local) in &mut table.routes {
            let wanted = local.wanted(is_shared(filter));
            local.told = Some(wanted);
            changes.push(RouteChange { filter: filter.clone(), route: Some(wanted) });
        }
        table.started = true;
        self.tasks.spawn(Box::pin(tell_lazily(Arc::downgrade(self), self.bell.clone(), self.soon.clone())));
        if changes.is_empty() {
            return;
        }
        let filters: Vec<Arc<str>> = changes.iter().map(|c| c.filter.clone()).collect();
        let written = self.write(changes, filters);
        for local in table.routes.values_mut() {
            local.written = Written::Pending(written.clone());
        }
    }

    /// Says when all routes there are now are written.
    pub fn all_written(&self) -> RouteWait {
        let mut wait = RouteWait::default();
        self.table.lock().routes.values().for_each(|local| wait.add(&local.written));
        wait
    }

    /// Counts one subscriber in for each filter that is new to it (`true`), and says when all these routes are written.
    pub fn add(&self, filters: &[(Arc<str>, bool)], persistent: bool) -> RouteWait {
        let mut table = self.table.lock();
        let Table { started, routes, lazy, .. } = &mut *table;
        let (mut changes, mut asked) = (Vec::new(), Vec::new());
        let mut wait = RouteWait::default();
        for (filter, is_new) in filters {
            let local = match routes.entry(filter.clone()) {
                Entry::Occupied(e) => e.into_mut(),
                Entry::Vacant(_) if !is_new => continue,
                Entry::Vacant(e) => {
                    let (told, written) = (None, Written::Untold);
                    e.insert(Local { members: 0, persistent: 0, told, written, listed: false })
                }
            };
            local.members += u32::from(*is_new);
            local.persistent += u32::from(*is_new && persistent);
            asked.push(filter);
            if !*started {
                continue;
            }
            let wanted = local.wanted(is_shared(filter));
            match local.told {
                Some(told) if told == wanted => {}
                Some((told_persistent, _)) if told_persistent || !wanted.0 => list(local, filter, lazy),
                _ => {
                    local.told = Some(wanted);
                    changes.push(RouteChange { filter: filter.clone(), route: Some(wanted) });
                }
            }
        }
        if !changes.is_empty() {
            wait.wrote = true;
            let told: Vec<Arc<str>> = changes.iter().map(|c| c.filter.clone()).collect();
            // Under the lock: what is told of a filter is told in the order in which it changes.
            let written = self.write(changes, told.clone());
            for filter in &told {
                if let Some(local) = routes.get_mut(filter) {
                    local.written = Written::Pending(written.clone());
                }
            }
        }
        asked.iter().filter_map(|f| routes.get(*f)).for_each(|local| wait.add(&local.written));
        let ring = !lazy.is_empty();
        drop(table);
        if ring {
            self.bell.ring();
        }
        wait
    }

    /// Counts one subscriber out of each of these filters.
    pub fn remove<'f>(&self, filters: impl IntoIterator<Item = &'f Arc<str>>, persistent: bool) {
        let mut table = self.table.lock();
        let Table { started, routes, lazy, .. } = &mut *table;
        let mut soon = false;
        for filter in filters {
            let Some(local) = routes.get_mut(filter) else { continue };
            local.members = local.members.saturating_sub(1);
            local.persistent = local.persistent.saturating_sub(u32::from(persistent));
            soon |= local.persistent == 0 && local.told.is_some_and(|(persistent, _)| persistent);
            if *started {
                list(local, filter, lazy);
            } else if local.members == 0 {
                routes.remove(filter);
            }
        }
        let ring = !lazy.is_empty();
        drop(table);
        if soon {
            self.soon.ring();
        }
        if ring {
            self.bell.ring();
        }
    }

    /// How many filters the sessions of this node have.
    pub fn len(&self) -> usize {
        self.table.lock().routes.len()
    }

    /// Whether no session of this node has a filter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes changes, to its end whoever waits for it.
    fn write(&self, changes: Vec<RouteChange>, filters: Vec<Arc<str>>) -> Shared<BoxFuture<Revision>> {
        let written = self.coordinator.routes(changes).shared();
        let (table, mine) = (self.table.clone(), written.clone());
        self.tasks.spawn(Box::pin(async move {
            let revision = mine.clone().await;
            let mut table = table.lock();
            for filter in &filters {
                // Unless it has been told anew meanwhile.
                if let Some(local) = table.routes.get_mut(filter)
                    && let Written::Pending(p) = &local.written
                    && p.ptr_eq(&mine)
                {
                    local.written = Written::At(revision);
                }
            }
        }));
        written
    }

    /// Tells at once what would be told later; completes with the revision at which it and all that was told before are
    /// written, at once with 0 if that is nothing.
    pub fn tell_now(&self) -> BoxFuture<Revision> {
        match self.tell() {
            Some(written) => Box::pin(written),
            None => Box::pin(std::future::ready(0)),
        }
    }

    /// Tells what has changed and still holds; the last such write, which comes after all others.
    fn tell(&self) -> Option<Shared<BoxFuture<Revision>>> {
        let mut table = self.table.lock();
        let Table { routes, lazy, told, .. } = &mut *table;
        let mut changes = Vec::new();
        for filter in std::mem::take(lazy) {
            let Entry::Occupied(mut e) = routes.entry(filter) else { continue };
            let local = e.get_mut();
            local.listed = false;
            if local.members == 0 {
                let (filter, local) = e.remove_entry();
                if local.told.is_some() {
                    changes.push(RouteChange { filter, route: None });
                }
                continue;
            }
            let filter = e.key().clone();
            let wanted = e.get().wanted(is_shared(&filter));
            if e.get().told != Some(wanted) {
                e.get_mut().told = Some(wanted);
                changes.push(RouteChange { filter, route: Some(wanted) });
            }
        }
        if !changes.is_empty() {
            *told = Some(self.write(changes, Vec::new()));
        }
        told.clone()
    }
}

fn list(local: &mut Local, filter: &Arc<str>, lazy: &mut Vec<Arc<str>>) {
    if !std::mem::replace(&mut local.listed, true) {
        lazy.push(filter.clone());
    }
}

fn is_shared(name: &str) -> bool {
    Filter::parse(name).is_ok_and(|f| f.share.is_some())
}

async fn tell_lazily(routes: Weak<LocalRoutes>, bell: Arc<Bell>, soon: Arc<Bell>) {
    loop {
        bell.heard().await;
        let Some(tasks) = routes.upgrade().map(|r| r.tasks.clone()) else { return };
        if let Either::Right(_) = select(tasks.sleep(LAZY_MS), soon.heard()).await {
            tasks.sleep(SOON_MS).await;
        }
        let Some(routes) = routes.upgrade() else { return };
        routes.tell();
    }
}

#[cfg(test)]
mod tests;
