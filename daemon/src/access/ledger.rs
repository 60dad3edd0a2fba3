//! Under which scopes each digest was had.
//!
//! ```text
//! DATA/access        public|node|private DIGEST [KEY]      the blob was had under this scope
//!                    partial-...         DIGEST [KEY]      a fetch of it began under this scope
//! ```
//!
//! A line is written when it becomes true and never changed; what concerns blobs that are gone is left out when the file is
//! opened. A line that is lost or unreadable costs a question to the origin: what is not known to be allowed is asked for.

mod journal;

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use shoal_proto::digest::Digest;

use self::journal::{PARTIAL, line};
use super::{GroupKey, Scope};

/// Digests that are kept at most. Those beyond are asked for at the origin each time, and go to no peer.
const DIGESTS_MAX: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Lines about fetches that begin which one process writes: who asks for what is nowhere must not fill the disk.
const PARTIAL_LINES_MAX: usize = 1 << 20;
/// Scopes of one digest.
const SCOPES_MAX: usize = 8;

/// Whether a request may be answered from what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Yes; or there is nothing here, and whoever has it decides.
    Granted,
    /// Only if the origin says so.
    Ask,
}

/// Which peers may have a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// All.
    All,
    /// Those who prove one of these keys.
    Groups(Vec<GroupKey>),
    /// None.
    Nobody,
}

/// Under which scopes each digest was had, and is being fetched.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    /// For names of what nobody else may know of.
    hidden: GroupKey,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { state: Mutex::default(), hidden: GroupKey::random() }
    }
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Digest, Kept>,
    flying: HashMap<Digest, Flying>,
    /// Digests that were not had under any scope: those of fetches that failed or are under way.
    without_scope: usize,
    /// None: nothing outlives the process.
    journal: Option<File>,
    partial_lines: usize,
}

#[derive(Debug, Default)]
struct Kept {
    scopes: Vec<Scope>,
    /// Under which scope the last fetch began.
    partial: Option<Scope>,
}

#[derive(Debug)]
struct Flying {
    /// Under which scope peers and origin are asked.
    own: Scope,
    /// Others that the origin granted meanwhile.
    proven: Vec<Scope>,
}

impl Flying {
    fn covers(&self, scope: &Scope) -> bool {
        self.own == *scope || self.proven.contains(scope)
    }
}

impl Ledger {
    /// Reads the ledger at `path`, and leaves out digests of which nothing is `stored`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(path: &Path, stored: impl Fn(&Digest) -> bool) -> io::Result<Self> {
        let mut kept = HashMap::new();
        match File::open(path) {
            Ok(file) => journal::read(file, &mut kept, stored)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let journal = journal::rewrite(path, &kept).or_else(|error| {
            // A full disk is no reason not to serve what is on it.
            tracing::warn!(%error, path = %path.display(), "the access ledger cannot be written anew");
            OpenOptions::new().append(true).open(path)
        });
        let without_scope = kept.values().filter(|kept| kept.scopes.is_empty()).count();
        let state = State { kept, without_scope, journal: journal.ok(), ..State::default() };
        Ok(Self { state: Mutex::new(state), ..Self::default() })
    }

    /// Whether a request under `scope` may be answered from what is here; `stored` says whether the whole blob is.
    #[must_use]
    pub fn standing(&self, digest: &Digest, scope: &Scope, stored: bool) -> Standing {
        let state = self.state();
        let flying = state.flying.get(digest);
        let known = state.kept.get(digest).is_some_and(|kept| kept.scopes.contains(scope));
        let covered = known || flying.is_some_and(|flying| flying.covers(scope));
        if *scope != Scope::Private && (covered || !stored && flying.is_none()) {
            Standing::Granted
        } else {
            Standing::Ask
        }
    }

    /// The origin granted what is here, whole or on its way, under this scope too.
    pub fn prove(&self, digest: &Digest, scope: Scope, stored: bool) {
        let mut state = self.state();
        if let Some(flying) = state.flying.get_mut(digest)
            && !flying.covers(&scope)
            && flying.proven.len() < SCOPES_MAX
        {
            flying.proven.push(scope);
        }
        if stored {
            state.keep(digest, scope);
        }
    }

    /// A fetch begins under `scope`. Returns whether it may go on with what an earlier one left: that may have come under
    /// another.
    #[must_use]
    pub fn begin(&self, digest: &Digest, scope: Scope) -> bool {
        let mut state = self.state();
        state.flying.insert(*digest, Flying { own: scope, proven: Vec::new() });
        state.part(digest, scope)
    }

    /// What lies here of a blob, to be gone on with, came under `scope`.
    pub fn left(&self, digest: &Digest, scope: Scope) {
        self.state().part(digest, scope);
    }

    /// The fetch of a blob succeeded: it was had under the fetch's own scope, and others were granted by the origin.
    pub fn sealed(&self, digest: &Digest) {
        let mut state = self.state();
        let Some(flying) = state.flying.remove(digest) else { return };
        for scope in std::iter::once(flying.own).chain(flying.proven) {
            state.keep(digest, scope);
        }
    }

    /// The fetch of a blob is over. After [`Self::sealed`] this changes nothing.
    pub fn ended(&self, digest: &Digest) {
        self.state().flying.remove(digest);
    }

    /// Under which scope a blob is being fetched.
    #[must_use]
    pub fn fetching(&self, digest: &Digest) -> Option<Scope> {
        self.state().flying.get(digest).map(|flying| flying.own)
    }

    /// The name of a blob towards trackers and the DHT: its digest if it is public; else one that only those can make who may
    /// have it, so that they meet one another and nobody else.
    #[must_use]
    pub fn name(&self, digest: &Digest) -> Digest {
        match (self.fetching(digest), self.share(digest)) {
            (Some(Scope::Node(key)), _) => key.name(digest),
            (Some(Scope::Private), _) | (None, Share::Nobody) => self.hidden.name(digest),
            (None, Share::Groups(keys)) => keys.first().unwrap_or(&self.hidden).name(digest),
            (Some(Scope::Public), _) | (None, Share::All) => *digest,
        }
    }

    /// The name under which peers may hear of a blob; none if no peer may.
    #[must_use]
    pub fn announced(&self, digest: &Digest) -> Option<Digest> {
        (self.share(digest) != Share::Nobody).then(|| self.name(digest))
    }

    /// Which peers may have it.
    #[must_use]
    pub fn share(&self, digest: &Digest) -> Share {
        let state = self.state();
        let kept = state.kept.get(digest).into_iter().flat_map(|kept| &kept.scopes);
        let flying = state.flying.get(digest);
        let flying = flying.into_iter().flat_map(|flying| std::iter::once(&flying.own).chain(&flying.proven));
        let mut keys = Vec::new();
        for scope in kept.chain(flying) {
            match scope {
                Scope::Public => return Share::All,
                Scope::Node(key) if !keys.contains(key) => keys.push(*key),
                Scope::Node(_) | Scope::Private => {}
            }
        }
        if keys.is_empty() { Share::Nobody } else { Share::Groups(keys) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, digest: &Digest, scope: Scope) {
        let Some(kept) = self.entry(digest) else { return };
        if kept.scopes.contains(&scope) || kept.scopes.len() >= SCOPES_MAX {
            return;
        }
        let is_first = kept.scopes.is_empty();
        kept.scopes.push(scope);
        self.without_scope -= usize::from(is_first);
        self.write(&line("", digest, &scope));
    }

    fn part(&mut self, digest: &Digest, scope: Scope) -> bool {
        let Some(kept) = self.entry(digest) else { return false };
        if kept.partial == Some(scope) {
            return true;
        }
        kept.partial = Some(scope);
        if self.partial_lines < PARTIAL_LINES_MAX {
            self.partial_lines += 1;
            self.write(&line(PARTIAL, digest, &scope));
        }
        false
    }

    fn entry(&mut self, digest: &Digest) -> Option<&mut Kept> {
        if !self.kept.contains_key(digest) {
            if self.kept.len() >= DIGESTS_MAX && self.without_scope > 0 {
                // They cost what was left of a fetch, at most.
                self.kept.retain(|_, kept| !kept.scopes.is_empty());
                self.without_scope = 0;
            }
            if self.kept.len() >= DIGESTS_MAX {
                return None;
            }
            self.without_scope += 1;
        }
        Some(self.kept.entry(*digest).or_default())
    }

    /// A short write into the page cache, once for each blob: not worth a thread.
    fn write(&mut self, line: &str) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.write_all(line.as_bytes())
        {
            tracing::warn!(%error, "the access ledger cannot be written; after a restart the origin is asked again");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;
    use crate::{credentials::Credential, secret::Secret};

    const DIGEST: Digest = Digest::sha256([1; 32]);

    fn node(password: &str) -> Scope {
        let credential = Credential::Basic { username: "robot".to_owned(), password: password.to_owned() };
        Scope::Node(GroupKey::derive(&Secret::none(), "a.test", &credential))
    }

    fn key(scope: Scope) -> GroupKey {
        match scope {
            Scope::Node(key) => key,
            Scope::Public | Scope::Private => panic!("no key"),
        }
    }

    fn had_under(scope: Scope) -> Ledger {
        let ledger = Ledger::default();
        assert!(!ledger.begin(&DIGEST, scope));
        ledger.sealed(&DIGEST);
        ledger
    }

    #[test]
    fn what_is_here_is_granted_under_the_scope_that_it_was_had_under_and_no_other() {
        let scopes = [Scope::Public, node("a"), node("b"), Scope::Private];
        for had in scopes {
            let ledger = had_under(had);
            for asked in scopes {
                let granted = asked == had && asked != Scope::Private;
                let expected = if granted { Standing::Granted } else { Standing::Ask };
                assert_eq!(ledger.standing(&DIGEST, &asked, true), expected, "{had:?} {asked:?}");
            }
        }
    }

    #[test]
    fn what_is_stored_and_not_known_is_asked_for() {
        let ledger = Ledger::default();
        assert_eq!(ledger.standing(&DIGEST, &Scope::Public, true), Standing::Ask);
        assert_eq!(ledger.share(&DIGEST), Share::Nobody);
    }

    #[test]
    fn what_is_not_here_is_for_whoever_has_it_to_grant_but_private_content_always_for_the_origin() {
        let ledger = Ledger::default();
        assert_eq!(ledger.standing(&DIGEST, &Scope::Public, false), Standing::Granted);
        assert_eq!(ledger.standing(&DIGEST, &node("a"), false), Standing::Granted);
        assert_eq!(ledger.standing(&DIGEST, &Scope::Private, false), Standing::Ask);
    }

    #[test]
    fn a_fetch_under_way_is_joined_under_its_own_scope_or_with_the_origins_word() {
        let ledger = Ledger::default();
        assert!(!ledger.begin(&DIGEST, node("a")));
        assert_eq!(ledger.standing(&DIGEST, &node("a"), false), Standing::Granted);
        assert_eq!(ledger.standing(&DIGEST, &Scope::Public, false), Standing::Ask);
        assert_eq!(ledger.share(&DIGEST), Share::Groups(vec![key(node("a"))]));
        ledger.prove(&DIGEST, Scope::Public, false);
        assert_eq!(ledger.standing(&DIGEST, &Scope::Public, false), Standing::Granted);
        assert_eq!((ledger.share(&DIGEST), ledger.fetching(&DIGEST)), (Share::All, Some(node("a"))));
    }

    #[test]
    fn a_scope_under_which_a_fetch_failed_is_forgotten() {
        let ledger = Ledger::default();
        assert!(!ledger.begin(&DIGEST, Scope::Public));
        ledger.ended(&DIGEST);
        assert!(!ledger.begin(&DIGEST, node("a")));
        ledger.sealed(&DIGEST);
        assert_eq!(ledger.standing(&DIGEST, &Scope::Public, true), Standing::Ask);
        assert_eq!(ledger.share(&DIGEST), Share::Groups(vec![key(node("a"))]));
    }

    #[test]
    fn peers_get_what_is_public_or_of_their_group_and_private_content_goes_to_none() {
        assert_eq!(had_under(Scope::Public).share(&DIGEST), Share::All);
        assert_eq!(had_under(Scope::Private).share(&DIGEST), Share::Nobody);
        let both = had_under(node("a"));
        both.prove(&DIGEST, node("b"), true);
        assert_eq!(both.share(&DIGEST), Share::Groups(vec![key(node("a")), key(node("b"))]));
        both.prove(&DIGEST, Scope::Public, true);
        assert_eq!(both.share(&DIGEST), Share::All);
    }

    #[test]
    fn peers_hear_of_what_they_may_have_under_the_name_that_is_for_them_and_of_nothing_else() {
        assert_eq!(had_under(Scope::Public).announced(&DIGEST), Some(DIGEST));
        assert_eq!(had_under(node("a")).announced(&DIGEST), Some(key(node("a")).name(&DIGEST)));
        for unheard_of in [had_under(Scope::Private), Ledger::default()] {
            assert_eq!(unheard_of.announced(&DIGEST), None);
        }
    }

    #[test]
    fn what_an_earlier_fetch_left_is_used_under_its_own_scope_only() {
        let ledger = Ledger::default();
        assert!(!ledger.begin(&DIGEST, Scope::Private), "nobody knows where it came from");
        ledger.ended(&DIGEST);
        assert!(!ledger.begin(&DIGEST, Scope::Public));
        ledger.ended(&DIGEST);
        assert!(ledger.begin(&DIGEST, Scope::Public));
    }

    #[test]
    fn the_ledger_outlives_the_process_and_forgets_blobs_that_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access");
        let gone = Digest::sha256([9; 32]);
        let ledger = Ledger::open(&path, |_| true).unwrap();
        for digest in [DIGEST, gone] {
            assert!(!ledger.begin(&digest, node("a")));
            ledger.sealed(&digest);
        }
        ledger.prove(&DIGEST, Scope::Private, true);
        drop(ledger);
        let ledger = Ledger::open(&path, |digest| *digest == DIGEST).unwrap();
        assert_eq!(ledger.share(&DIGEST), Share::Groups(vec![key(node("a"))]));
        assert_eq!(ledger.share(&gone), Share::Nobody);
        assert!(ledger.begin(&DIGEST, node("a")), "it began under the same scope before");
        assert!(!fs::read_to_string(&path).unwrap().contains(&gone.to_string()));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_ledger_that_cannot_be_written_anew_is_read_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access");
        fs::write(&path, format!("public {DIGEST}\n")).unwrap();
        // As on a disk without room.
        fs::create_dir(path.with_extension("new")).unwrap();
        let ledger = Ledger::open(&path, |_| true).unwrap();
        assert_eq!(ledger.share(&DIGEST), Share::All);
        ledger.prove(&DIGEST, Scope::Private, true);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("public {DIGEST}\nprivate {DIGEST}\n"));
        let nowhere = dir.path().join("access.new/no/access");
        assert_eq!(Ledger::open(&nowhere, |_| true).unwrap().share(&DIGEST), Share::Nobody);
    }

    #[test]
    fn fetches_that_fail_leave_room_for_what_is_had() {
        let ledger = Ledger::default();
        let number = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            Digest::sha256(bytes)
        };
        for at in 0..2 * DIGESTS_MAX {
            assert!(!ledger.begin(&number(at), Scope::Public));
            ledger.ended(&number(at));
        }
        for at in 0..DIGESTS_MAX {
            assert!(!ledger.begin(&number(4 * DIGESTS_MAX + at), Scope::Public));
            ledger.sealed(&number(4 * DIGESTS_MAX + at));
        }
        let state = ledger.state();
        assert_eq!((state.kept.len(), state.without_scope), (DIGESTS_MAX, 0));
    }

    #[test]
    fn lines_that_are_cut_off_or_made_up_grant_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access");
        let good = format!("private {DIGEST}\n");
        let long = "x".repeat(5000);
        for bad in [
            format!("public {DIGEST}"),
            format!("public  {DIGEST}\n"),
            format!("public {DIGEST} x\n"),
            format!("node {DIGEST}\n"),
            format!("node {DIGEST} 00\n"),
            format!("everybody {DIGEST}\n"),
            "public sha256:00\n".to_owned(),
            format!("public {DIGEST}{long}\n"),
            format!("{}public {DIGEST}\n", "x".repeat(1024)),
            format!("{long}\n"),
        ] {
            fs::write(&path, [good.as_bytes(), b"\xff\xfe\n", bad.as_bytes()].concat()).unwrap();
            let ledger = Ledger::open(&path, |_| true).unwrap();
            assert_eq!(ledger.share(&DIGEST), Share::Nobody, "{bad}");
            assert_eq!(fs::read_to_string(&path).unwrap(), good, "{bad}");
        }
    }
}
