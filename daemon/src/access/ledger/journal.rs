//! The ledger's file: a line for each thing that became true.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use shoal_proto::digest::Digest;

use super::{DIGESTS_MAX, Kept, SCOPES_MAX};
use crate::access::{GroupKey, Scope};

/// Longest line that is read, in bytes: three times what a line can need.
const LINE_BYTES_MAX: u64 = 1024;

/// In front of the scope under which a fetch began.
pub(super) const PARTIAL: &str = "partial-";

impl Kept {
    fn lines(&self, digest: &Digest) -> String {
        let scopes = self.scopes.iter().map(|scope| line("", digest, scope));
        scopes.chain(self.partial.iter().map(|scope| line(PARTIAL, digest, scope))).collect()
    }
}

pub(super) fn line(prefix: &str, digest: &Digest, scope: &Scope) -> String {
    match scope {
        Scope::Public => format!("{prefix}public {digest}\n"),
        Scope::Node(key) => format!("{prefix}node {digest} {}\n", key.to_hex()),
        Scope::Private => format!("{prefix}private {digest}\n"),
    }
}

/// Writes the ledger with what counts of it, and opens it for more.
pub(super) fn rewrite(path: &Path, kept: &HashMap<Digest, Kept>) -> io::Result<File> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let lines = kept.iter().map(|(digest, kept)| kept.lines(digest)).collect::<String>();
    if let Err(error) = file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()) {
        fs::remove_file(&fresh).ok();
        return Err(error);
    }
    fs::rename(&fresh, path)?;
    OpenOptions::new().append(true).open(path)
}

/// Reads what lines there are. One that was cut off by a crash is as good as lost, and so is one that somebody changed.
pub(super) fn read(file: File, kept: &mut HashMap<Digest, Kept>, stored: impl Fn(&Digest) -> bool) -> io::Result<()> {
    let mut file = BufReader::new(file);
    let mut bytes = Vec::new();
    let mut is_rest = false;
    loop {
        bytes.clear();
        if Read::take(&mut file, LINE_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        // What is left of a line that is too long is no line.
        let was_rest = std::mem::replace(&mut is_rest, !bytes.ends_with(b"\n"));
        if was_rest {
            continue;
        }
        let whole = bytes.strip_suffix(b"\n").and_then(|text| std::str::from_utf8(text).ok());
        let Some((is_partial, digest, scope)) = whole.and_then(parse) else { continue };
        if !stored(&digest) || kept.len() >= DIGESTS_MAX && !kept.contains_key(&digest) {
            continue;
        }
        let entry: &mut Kept = kept.entry(digest).or_default();
        if is_partial {
            entry.partial = Some(scope);
        } else if !entry.scopes.contains(&scope) && entry.scopes.len() < SCOPES_MAX {
            entry.scopes.push(scope);
        }
    }
}

fn parse(line: &str) -> Option<(bool, Digest, Scope)> {
    let mut words = line.split(' ');
    let (kind, digest, key) = (words.next()?, words.next()?.parse().ok()?, words.next());
    if words.next().is_some() {
        return None;
    }
    let (is_partial, kind) = kind.strip_prefix(PARTIAL).map_or((false, kind), |kind| (true, kind));
    let scope = match (kind, key) {
        ("public", None) => Scope::Public,
        ("node", Some(key)) => Scope::Node(GroupKey::from_hex(key)?),
        ("private", None) => Scope::Private,
        _ => return None,
    };
    Some((is_partial, digest, scope))
}
