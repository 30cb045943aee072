//! The endpoints for reading: files, information, revisions, listings.

use std::collections::BTreeSet;

use lmr_pipeline::tensors::sha256;
use serde_json::{Value, json};

use super::State;
use super::answer::{Answer, Request};
use super::repository::{Files, Kind, Repository, git_blob_id, is_large};

/// The answer to a request for reading; `None` if it is for something else.
pub fn answer(state: &State, request: &Request) -> Option<Answer> {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return None;
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", kind, owner, name, rest @ ..] => {
            let kind = [Kind::Model, Kind::Dataset].into_iter().find(|known| known.plural() == *kind)?;
            let id = format!("{owner}/{name}");
            match rest {
                [] => Some(with_commit(state, request, kind, &id, "main", |commit, files| info(&id, commit, files))),
                ["revision", revision] => {
                    Some(with_commit(state, request, kind, &id, revision, |commit, files| info(&id, commit, files)))
                }
                ["tree", revision] => {
                    Some(with_commit(state, request, kind, &id, revision, |_, files| listing(state, request, files)))
                }
                _ => None,
            }
        }
        ["datasets", owner, name, "resolve", revision, path @ ..] => {
            let id = format!("{owner}/{name}");
            Some(with_commit(state, request, Kind::Dataset, &id, revision, |commit, files| {
                file(state, request, commit, files, &path.join("/"))
            }))
        }
        [owner, name, "resolve", revision, path @ ..] => {
            let id = format!("{owner}/{name}");
            Some(with_commit(state, request, Kind::Model, &id, revision, |commit, files| {
                file(state, request, commit, files, &path.join("/"))
            }))
        }
        _ => None,
    }
}

/// A large file, from the other port.
pub fn blob(state: &State, request: &Request) -> Answer {
    let digest = request.path.rsplit('/').next().unwrap_or_default();
    match state.repositories.blob(digest) {
        // Not the Hub's ETag: a client must not take it for one.
        Some(bytes) => ranged(request, &bytes).with("ETag", "\"of-another-kind\""),
        None => Answer::error(404, None, "no such blob"),
    }
}

fn with_commit(
    state: &State,
    request: &Request,
    kind: Kind,
    id: &str,
    revision: &str,
    found: impl FnOnce(&str, &Files) -> Answer,
) -> Answer {
    let Some(repository) = state.repositories.get(kind, id) else {
        // Whoever shows no token is not told whether a private repository exists.
        return match request.header("authorization") {
            Some(_) => Answer::error(404, Some("RepoNotFound"), "Repository not found"),
            None => Answer::error(401, Some("RepoNotFound"), "Invalid username or password."),
        };
    };
    let commit = repository.resolve(revision);
    match commit.and_then(|commit| Some((commit, Repository::files(repository, commit)?))) {
        Some((commit, files)) => found(commit, files),
        None => Answer::error(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}")),
    }
}

fn info(id: &str, commit: &str, files: &Files) -> Answer {
    let siblings: Vec<Value> = files.keys().map(|path| json!({ "rfilename": path })).collect();
    Answer::json(&json!({ "id": id, "sha": commit, "siblings": siblings }))
}

fn listing(state: &State, request: &Request, files: &Files) -> Answer {
    let folders = files.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
    let folders: BTreeSet<&str> = folders.filter(|folder| !folder.is_empty()).collect();
    let folders = folders.iter().map(|path| json!({ "type": "directory", "oid": git_blob_id(b""), "path": path }));
    let entries = files.iter().map(|(path, bytes)| {
        let mut entry = json!({ "type": "file", "oid": git_blob_id(bytes), "size": bytes.len(), "path": path });
        if is_large(path) {
            entry["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
        }
        entry
    });
    let all: Vec<Value> = folders.chain(entries).collect();
    let start = request.query.get("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0usize).min(all.len());
    let end = (start + state.page).min(all.len());
    let answer = Answer::json(&json!(all[start..end]));
    if end == all.len() {
        return answer;
    }
    let next = format!("<{}{}?recursive=true&cursor={end}>; rel=\"next\"", state.url, request.path);
    answer.with("Link", next)
}

fn file(state: &State, request: &Request, commit: &str, files: &Files, path: &str) -> Answer {
    let Some(bytes) = files.get(path) else {
        return Answer::error(404, Some("EntryNotFound"), "Entry not found").with("X-Repo-Commit", commit);
    };
    let answer = if is_large(path) {
        let digest = sha256(bytes);
        Answer::redirect(&format!("{}/blobs/{digest}?X-Amz-Signature=signed-in-secret", state.cdn))
            .with("X-Linked-Etag", format!("\"{digest}\""))
            .with("X-Linked-Size", bytes.len().to_string())
    } else {
        ranged(request, bytes).with("ETag", format!("\"{}\"", git_blob_id(bytes)))
    };
    answer.with("X-Repo-Commit", commit)
}

/// The bytes, or those from where the client wants to go on.
fn ranged(request: &Request, bytes: &[u8]) -> Answer {
    let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => Answer::bytes(bytes),
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer { status: 206, ..Answer::bytes(&bytes[start..]) }.with("Content-Range", range)
        }
        Some(_) => {
            Answer { status: 416, ..Answer::bytes("") }.with("Content-Range", format!("bytes */{}", bytes.len()))
        }
    }
}
