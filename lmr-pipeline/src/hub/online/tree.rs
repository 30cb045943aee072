//! The listing of a repository: page after page, each one bounded, all of them from the endpoint.

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::client::{Client, Fault, shorten};
use crate::hub::{HubError, RepoKind, names};

/// A page of 1,000 entries takes 300 KB.
const MAX_PAGE: u64 = 8 << 20;
/// 100,000 files; a checkpoint is not among more.
const MAX_PAGES: usize = 100;

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    file: Listed,
}

/// A file as a listing has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Listed {
    /// Its path.
    pub path: String,
    /// Git's name of it; of a large one, that of the pointer to it.
    pub oid: Option<String>,
    /// What is known of a file that is kept apart from git.
    pub lfs: Option<Large>,
}

/// A file that is kept apart from git.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Large {
    /// SHA-256 of its bytes.
    pub oid: String,
    /// How many bytes it has.
    pub size: u64,
}

/// All files at a commit whose names can be asked for.
pub fn entries(client: &Client, kind: RepoKind, repo: &str, commit: &str) -> Result<Vec<Listed>, HubError> {
    list(client, kind, repo, commit).map_err(|fault| {
        fault.about(|reason| HubError::Unlisted { repo: format!("{} at {commit}", kind.describe(repo)), reason })
    })
}

fn list(client: &Client, kind: RepoKind, repo: &str, commit: &str) -> Result<Vec<Listed>, Fault> {
    let (owner, name) = repo.split_once('/').unwrap_or((repo, ""));
    let mut url = client.url(["api", kind.plural(), owner, name, "tree", commit]);
    url.set_query(Some("recursive=true"));
    let mut files = Vec::new();
    for _ in 0..MAX_PAGES {
        let (page, headers) = client.json::<Vec<Entry>>(&url, MAX_PAGE)?;
        for Entry { kind, file } in page {
            if !names::is_below(&file.path) {
                let shown = shorten(&file.path);
                return Err(Fault::malformed(format!("names the file \"{shown}\", which is outside the repository")));
            }
            if kind == "file" && names::check_path(&file.path).is_ok() {
                files.push(file);
            }
        }
        let Some(next) = next_page(&headers) else { return Ok(files) };
        // The token goes wherever the next page is.
        url = url
            .join(next)
            .ok()
            .filter(|next| client.is_endpoint(next))
            .ok_or_else(|| Fault::malformed("names another host for the next page of files"))?;
    }
    Err(Fault::malformed(format!("has more than {MAX_PAGES} pages of files; name the checkpoint with `file`")))
}

/// The address with `rel="next"` in the header `Link`.
fn next_page(headers: &HeaderMap) -> Option<&str> {
    let links = headers.get_all("link").into_iter().filter_map(|value| value.to_str().ok());
    let next = links
        .flat_map(|links| links.split(','))
        .find(|link| link.split(';').skip(1).any(|part| matches!(part.trim(), "rel=\"next\"" | "rel=next")))?;
    next.split(';').next()?.trim().strip_prefix('<')?.strip_suffix('>')
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("<https://a/b?cursor=1>; rel=\"next\"", Some("https://a/b?cursor=1"))]
    #[case("<https://a/1>; rel=\"prev\", <https://a/2>; rel=\"next\"", Some("https://a/2"))]
    #[case("<https://a/1>; rel=\"prev\"", None)]
    #[case("https://a/1; rel=\"next\"", None)]
    #[case("", None)]
    fn the_next_page(#[case] link: &'static str, #[case] expected: Option<&str>) {
        let headers = HeaderMap::from_iter([(reqwest::header::LINK, HeaderValue::from_static(link))]);
        assert_eq!(next_page(&headers), expected);
    }
}
