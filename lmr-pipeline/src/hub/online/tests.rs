//! Against a cache made here and a server on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use rstest::rstest;
use tempfile::TempDir;

use crate::hub::tests::{CONTENT, FILE, MAIN, REVISION, cache, hub, note, offline, sha256};
use crate::hub::{Hub, HubError, RemoteFile, RemoteFiles};

/// `printf 'the true bytes' | git hash-object --stdin`
const GIT_BLOB: &str = "3fb262ad90d4e251d8a90eee9056e0c44bd2200a";

/// What the server answers to GET, one a request; the last one again and again. HEAD always describes [`CONTENT`].
fn serve(answers: &'static [(&'static str, &'static [u8])], etag: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    std::thread::spawn(move || {
        let mut gets = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            for line in BufReader::new(&stream).lines() {
                match line.unwrap() {
                    line if line.is_empty() => break,
                    line => head.push(line),
                }
            }
            let get = head[0].starts_with("GET");
            seen.lock().unwrap().push(head.join("\n"));
            let (status, body) = if get { answers[gets.min(answers.len() - 1)] } else { ("200 OK", CONTENT) };
            gets += usize::from(get);
            write!(
                stream,
                "HTTP/1.1 {status}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {REVISION}\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n",
                body.len()
            )
            .unwrap();
            if get {
                stream.write_all(body).unwrap();
            }
        }
    });
    (address, log)
}

fn online(folder: &TempDir, endpoint: &str) -> Hub {
    let cache = folder.path().to_string_lossy();
    hub(&[("HF_HUB_CACHE", &cache), ("HF_ENDPOINT", endpoint), ("HF_TOKEN", "hf_secret\n")])
}

#[test]
fn download_is_verified_and_then_cached() {
    let folder = TempDir::new().unwrap();
    let (endpoint, log) = serve(&[("200 OK", CONTENT)], sha256(CONTENT));
    let found = online(&folder, &endpoint).dataset_file(&FILE).unwrap();
    assert_eq!(std::fs::read(&found.path).unwrap(), CONTENT);
    let requests = log.lock().unwrap().clone();
    assert!(requests[0].contains(&format!("/datasets/some/set/resolve/{REVISION}/data/t.parquet")), "{requests:?}");
    assert!(requests[0].contains("Bearer hf_secret"), "{requests:?}");
    assert_eq!(offline(&folder).dataset_file(&FILE).unwrap(), found);
}

#[test]
fn an_error_page_is_fetched_again() {
    let folder = TempDir::new().unwrap();
    let (endpoint, _) = serve(&[("503 Service Unavailable", b"later"), ("200 OK", CONTENT)], sha256(CONTENT));
    let found = online(&folder, &endpoint).dataset_file(&FILE).unwrap();
    assert_eq!(std::fs::read(found.path).unwrap(), CONTENT);
}

#[rstest]
#[case::refused("403 Forbidden", b"go away", "refuses access with this token")]
#[case::busy("503 Service Unavailable", b"later", "the Hub answered 503")]
#[case::of_another_length("200 OK", b"go away", "has 7 bytes, expected 14")]
#[case::of_the_same_length("200 OK", b"no true  bytes", "is damaged")]
fn a_lasting_error_page_is_refused_and_removed(
    #[case] status: &'static str,
    #[case] body: &'static [u8],
    #[case] message: &str,
) {
    let folder = TempDir::new().unwrap();
    let (endpoint, _) = serve(vec![(status, body)].leak(), sha256(CONTENT));
    let error = online(&folder, &endpoint).dataset_file(&FILE).unwrap_err().to_string();
    assert!(error.contains(message) && !error.contains("secret"), "{error}");
    assert!(matches!(offline(&folder).dataset_file(&FILE), Err(HubError::Offline { .. })));
    let blob = folder.path().join("datasets--some--set/blobs").join(sha256(CONTENT));
    assert!(!blob.exists());
}

#[rstest]
#[case::no_digest("../../../x", "expected a SHA-256 or a git blob id")]
#[case::another_file("0000000000000000000000000000000000000000", "has git blob id")]
fn what_cannot_be_verified_is_refused(#[case] etag: &str, #[case] message: &str) {
    let folder = TempDir::new().unwrap();
    let (endpoint, _) = serve(&[("200 OK", CONTENT)], etag.to_owned());
    let digest = sha256(CONTENT);
    for file in [FILE, RemoteFile { sha256: Some(&digest), ..FILE }] {
        let error = online(&folder, &endpoint).dataset_file(&file).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(!folder.path().join("datasets--some--set/snapshots").exists());
}

#[test]
fn small_files_are_verified_by_their_name_in_git() {
    let folder = TempDir::new().unwrap();
    let (endpoint, _) = serve(&[("200 OK", CONTENT)], GIT_BLOB.to_owned());
    let found = online(&folder, &endpoint).dataset_file(&FILE).unwrap();
    assert_eq!(found.sha256, sha256(CONTENT));
    assert_eq!(offline(&folder).dataset_file(&FILE).unwrap(), found);
    std::fs::write(&found.path, b"no true  bytes").unwrap();
    let error = offline(&folder).dataset_file(&FILE).unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains(GIT_BLOB), "{error}");
}

#[test]
fn a_file_the_hub_has_otherwise_is_not_downloaded() {
    let folder = TempDir::new().unwrap();
    let (endpoint, log) = serve(&[("200 OK", CONTENT)], sha256(CONTENT));
    let wanted = sha256(b"other");
    let error = online(&folder, &endpoint).dataset_file(&RemoteFile { sha256: Some(&wanted), ..FILE }).unwrap_err();
    assert!(matches!(error, HubError::Other { expected, .. } if expected == wanted));
    let error = online(&folder, &endpoint).dataset_file(&RemoteFile { max_bytes: 13, ..FILE }).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { bytes: 14, limit: 13, .. }));
    assert!(log.lock().unwrap().iter().all(|request| request.starts_with("HEAD")));
}

#[test]
fn an_unreachable_hub_is_said_so() {
    let folder = TempDir::new().unwrap();
    let endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let error = online(&folder, &endpoint).dataset_file(&FILE).unwrap_err().to_string();
    assert!(error.contains("the Hub cannot be reached") && error.contains("HF_ENDPOINT"), "{error}");
}

const ANSWER: (&str, &[u8]) = ("200 OK", br#"{"id":"some/set","sha":"0123456789abcdef0123456789abcdef01234567"}"#);

#[rstest]
#[case::none(None)]
#[case::of_other_files(Some("ffffffffffffffffffffffffffffffffffffffff"))]
fn the_hub_says_what_a_branch_is(#[case] noted: Option<&str>) {
    let folder = TempDir::new().unwrap();
    if let Some(commit) = noted {
        note(&folder, commit);
    }
    let (endpoint, log) = serve(&[ANSWER, ("200 OK", CONTENT)], sha256(CONTENT));
    let wanted = RemoteFiles { files: &[FILE, RemoteFile { path: "data/u.parquet", ..FILE }], ..MAIN };
    let found = online(&folder, &endpoint).get(&wanted).unwrap();
    assert_eq!((found.commit.as_str(), found.files.len()), (REVISION, 2));
    assert!(found.files.iter().all(|file| file.sha256 == sha256(CONTENT)));
    let requests = log.lock().unwrap().clone();
    assert!(requests[0].starts_with("GET /api/datasets/some/set/revision/main "), "{requests:?}");
    // Asked once, and every file is of the commit, not of the branch.
    assert!(requests.len() > 2, "{requests:?}");
    assert!(
        requests[1..].iter().all(|request| request.contains(&format!("/resolve/{REVISION}/data/"))),
        "{requests:?}"
    );
    // From now on it is known, to Python as well.
    let noted = std::fs::read_to_string(folder.path().join("datasets--some--set/refs/main")).unwrap();
    assert_eq!(noted, REVISION);
    assert_eq!(online(&folder, &endpoint).get(&wanted).unwrap(), found);
    assert_eq!(offline(&folder).get(&wanted).unwrap(), found);
    assert_eq!(log.lock().unwrap().len(), requests.len());
}

#[rstest]
#[case::path("200 OK", r#"{"id":"some/set","sha":"../../x"}"#, "malformed: found \"../../x\", expected a commit")]
#[case::capitals(
    "200 OK",
    r#"{"id":"some/set","sha":"0123456789ABCDEF0123456789abcdef01234567"}"#,
    "malformed: found \"0123456789ABCDEF"
)]
#[case::missing("200 OK", r#"{"id":"some/set"}"#, "incomplete (no `sha`)")]
#[case::page("200 OK", "<html>", "the Hub's answer cannot be read")]
#[case::unknown("404 Not Found", "{}", "no such repository, revision or file")]
fn a_useless_answer_is_refused(#[case] status: &'static str, #[case] body: &'static str, #[case] message: &str) {
    let folder = TempDir::new().unwrap();
    let (endpoint, log) = serve(vec![(status, body.as_bytes())].leak(), sha256(CONTENT));
    let error = online(&folder, &endpoint).get(&MAIN).unwrap_err().to_string();
    let start = "the commit of `main` in data set repository some/set is not known: ";
    assert!(error.starts_with(start) && error.contains(message), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_failed_download_leaves_the_note() {
    let folder = TempDir::new().unwrap();
    let path = note(&folder, "ffffffffffffffffffffffffffffffffffffffff");
    let (endpoint, _) = serve(&[ANSWER, ("403 Forbidden", b"go away")], sha256(CONTENT));
    assert!(matches!(online(&folder, &endpoint).get(&MAIN), Err(HubError::Download { .. })));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "ffffffffffffffffffffffffffffffffffffffff");
}

#[test]
fn noted_commit_is_used_without_a_request() {
    let folder = cache(CONTENT, true);
    note(&folder, &format!("{REVISION}\n"));
    let (endpoint, log) = serve(&[("200 OK", b"")], sha256(b""));
    for hub in [offline(&folder), online(&folder, &endpoint)] {
        let found = hub.get(&MAIN).unwrap();
        assert_eq!((found.commit.as_str(), found.files[0].sha256.as_str()), (REVISION, sha256(CONTENT).as_str()));
    }
    assert!(log.lock().unwrap().is_empty());
}
