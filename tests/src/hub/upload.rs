//! The endpoints for writing: a repository, and a commit on a branch.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::State;
use super::answer::{Answer, Request};
use super::repository::{Kind, is_large};

/// The answer to a request for writing; `None` if it is for something else.
pub fn answer(state: &mut State, request: &Request) -> Option<Answer> {
    if request.method != "POST" {
        return None;
    }
    if request.header("authorization").is_none() {
        return Some(Answer::error(401, None, "Invalid username or password."));
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "repos", "create"] => Some(create(state, request)),
        ["api", "models", _, _, "preupload", _] => Some(preupload(request)),
        // Any other transfer than xet makes clients send large files within the commit.
        [_, git, "info", "lfs", "objects", "batch"] if git.ends_with(".git") => {
            Some(Answer::json(&json!({ "transfer": "basic", "objects": [] })))
        }
        ["api", "models", owner, name, "commit", branch] => {
            Some(commit(state, request, &format!("{owner}/{name}"), branch))
        }
        _ => None,
    }
}

fn create(state: &mut State, request: &Request) -> Answer {
    let wanted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let text = |key: &str| wanted[key].as_str().unwrap_or_default();
    let id = format!("{}/{}", text("organization"), text("name"));
    let url = format!("{}/{id}", state.url);
    if state.repositories.get(Kind::Model, &id).is_some() {
        return Answer {
            status: 409,
            ..Answer::json(&json!({ "error": "You already created this model repo", "url": url }))
        };
    }
    state.repositories.create(Kind::Model, &id);
    Answer::json(&json!({ "url": url }))
}

fn preupload(request: &Request) -> Answer {
    let wanted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let mode = |path: &str| if is_large(path) { "lfs" } else { "regular" };
    let files = wanted["files"].as_array().into_iter().flatten().filter_map(|file| file["path"].as_str());
    let files: Vec<Value> =
        files.map(|path| json!({ "path": path, "uploadMode": mode(path), "shouldIgnore": false })).collect();
    Answer::json(&json!({ "files": files }))
}

fn commit(state: &mut State, request: &Request, id: &str, branch: &str) -> Answer {
    let url = state.url.clone();
    let Some(repository) = state.repositories.get_mut(Kind::Model, id) else {
        return Answer::error(404, Some("RepoNotFound"), "Repository not found");
    };
    let Some(head) = repository.resolve(branch).cloned() else {
        return Answer::error(404, Some("RevisionNotFound"), "Invalid rev id");
    };
    let Some((parent, changes)) = read(&request.body) else { return Answer::error(400, None, "Invalid commit") };
    if parent.is_some_and(|parent| parent != head) {
        return Answer::error(412, None, "A commit has happened since. Please refresh and try again.");
    }
    let commit = repository.commit(branch, changes.into_iter().collect());
    let url = format!("{url}/{id}/commit/{commit}");
    Answer::json(&json!({ "success": true, "commitOid": commit, "commitUrl": url }))
}

/// A file to add, or with `None` to remove.
type Change = (String, Option<Vec<u8>>);

/// The parent and the changes of a commit, a line of JSON each.
fn read(body: &[u8]) -> Option<(Option<String>, Vec<Change>)> {
    let (mut parent, mut changes) = (None, Vec::new());
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).ok()?;
        let value = &line["value"];
        let path = || value["path"].as_str().map(str::to_owned);
        match line["key"].as_str()? {
            "header" => parent = value["parentCommit"].as_str().map(str::to_owned),
            "file" => changes.push((path()?, Some(STANDARD.decode(value["content"].as_str()?).ok()?))),
            "deletedFile" => changes.push((path()?, None)),
            _ => return None,
        }
    }
    Some((parent, changes))
}
