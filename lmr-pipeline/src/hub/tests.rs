//! Against a cache made here and a server on this machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lmr_plugin::run::Quiet;
use rstest::rstest;
use tempfile::TempDir;

use super::*;

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const FILE: RemoteFile<'_> = RemoteFile { path: "data/t.parquet", sha256: None, max_bytes: 1000 };
const FILES: RemoteFiles<'_> =
    RemoteFiles { kind: RepoKind::Dataset, repo: "some/set", revision: REVISION, files: &[FILE] };
const MAIN: RemoteFiles<'_> = RemoteFiles { revision: "main", ..FILES };
const CONTENT: &[u8] = b"the true bytes";
/// `printf 'the true bytes' | git hash-object --stdin`
const GIT_BLOB: &str = "3fb262ad90d4e251d8a90eee9056e0c44bd2200a";

impl Hub {
    /// One file at a commit.
    fn dataset_file(&self, file: &RemoteFile) -> Result<HubFile, HubError> {
        let found = self.get(&RemoteFiles { files: &[*file], ..FILES })?;
        assert_eq!(found.commit, REVISION);
        Ok(found.files[0].clone())
    }

    fn get(&self, wanted: &RemoteFiles) -> Result<HubFiles, HubError> {
        self.files(wanted, &Quiet)
    }
}

fn sha256(bytes: &[u8]) -> String {
    crate::tensors::sha256(bytes)
}

fn hub(variables: &[(&str, &str)]) -> Hub {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    let hub =
        Hub::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()), Some("/home/user".into()));
    let short = Duration::from_millis(1);
    hub.with_patience(Patience { delay: short, tries: 3, ..Patience::default() })
}

#[rstest]
#[case(&[], "/home/user/.cache/huggingface/hub")]
#[case(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub")]
#[case(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub")]
#[case(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old")]
#[case(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")], "/c")]
#[case(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h\n")], "/h/hub")]
fn cache_follows_the_environment(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
    assert_eq!(hub(variables).cache, PathBuf::from(expected));
}

#[rstest]
#[case("1", true)]
#[case("true", true)]
#[case("0", false)]
#[case("", false)]
fn offline_follows_the_environment(#[case] value: &str, #[case] expected: bool) {
    assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).offline, expected);
}

#[test]
fn token_is_trimmed_and_hidden() {
    let with_token = hub(&[("HF_TOKEN", "hf_secret\n")]);
    assert_eq!(with_token.token.as_deref(), Some("hf_secret"));
    assert!(!format!("{with_token:?}").contains("secret"));
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
    assert_eq!(hub(&[("HF_HOME", &folder.path().to_string_lossy())]).token.as_deref(), Some("hf_file"));
}

/// A cache with one file, plain or as a link to its blob.
fn cache(content: &[u8], link: bool) -> TempDir {
    let folder = TempDir::new().unwrap();
    let repository = folder.path().join("datasets--some--set");
    let data = repository.join("snapshots").join(REVISION).join("data");
    std::fs::create_dir_all(&data).unwrap();
    if link {
        let blob = repository.join("blobs").join(sha256(CONTENT));
        std::fs::create_dir_all(repository.join("blobs")).unwrap();
        std::fs::write(&blob, content).unwrap();
        std::os::unix::fs::symlink(&blob, data.join("t.parquet")).unwrap();
    } else {
        std::fs::write(data.join("t.parquet"), content).unwrap();
    }
    folder
}

fn offline(folder: &TempDir) -> Hub {
    hub(&[("HF_HUB_CACHE", &folder.path().to_string_lossy()), ("HF_HUB_OFFLINE", "1")])
}

#[rstest]
#[case::plain(false)]
#[case::linked(true)]
fn cached_file_is_used(#[case] link: bool) {
    let folder = cache(CONTENT, link);
    let found = offline(&folder).dataset_file(&FILE).unwrap();
    assert_eq!((found.sha256, found.bytes), (sha256(CONTENT), CONTENT.len() as u64));
    assert!(found.path.starts_with(folder.path()));
}

#[test]
fn cached_file_is_verified() {
    let poisoned = cache(b"503", true);
    let error = offline(&poisoned).dataset_file(&FILE).unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains(&sha256(b"503")) && error.contains("remove it"), "{error}");
    let sound = cache(CONTENT, false);
    let wanted = sha256(b"other");
    let error = offline(&sound).dataset_file(&RemoteFile { sha256: Some(&wanted), ..FILE }).unwrap_err();
    assert!(matches!(error, HubError::Digest { expected, .. } if expected == wanted));
    // Somebody's cache is theirs: nothing in it is removed for being wrong.
    assert!(offline(&sound).dataset_file(&FILE).is_ok());
}

#[test]
fn missing_file_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let error = offline(&folder).dataset_file(&FILE).unwrap_err().to_string();
    for part in [
        "`data/t.parquet` of data set repository some/set at 0123456789abcdef0123456789abcdef01234567 is missing",
        "datasets--some--set/snapshots/0123456789abcdef0123456789abcdef01234567/data/t.parquet",
        "unset HF_HUB_OFFLINE",
        "hf download --repo-type dataset some/set data/t.parquet --revision 0123456789abcdef0123456789abcdef01234567",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[rstest]
#[case::path(RemoteFiles { files: &[FILE, RemoteFile { path: "../../../../etc/passwd", ..FILE }], ..FILES })]
#[case::absolute(RemoteFiles { files: &[RemoteFile { path: "/etc/passwd", ..FILE }], ..FILES })]
#[case::repo(RemoteFiles { repo: "../x", ..FILES })]
#[case::revision(RemoteFiles { revision: "../../x", ..FILES })]
#[case::option(RemoteFiles { revision: "--force", ..FILES })]
#[case::nothing(RemoteFiles { files: &[], ..MAIN })]
fn hostile_names_are_refused(#[case] wanted: RemoteFiles<'_>) {
    assert!(matches!(hub(&[]).get(&wanted), Err(HubError::Name { .. })));
}

/// Notes in the cache what `main` is.
fn note(folder: &TempDir, text: &str) -> PathBuf {
    let refs = folder.path().join("datasets--some--set/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), text).unwrap();
    refs.join("main")
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

#[rstest]
#[case::empty("")]
#[case::name("main")]
#[case::short("0123456789abcdef0123456789abcdef0123456")]
#[case::capitals("0123456789ABCDEF0123456789abcdef01234567")]
#[case::path("../../../../../../../../../../../../../..")]
fn malformed_note_is_refused(#[case] text: &str) {
    let folder = cache(CONTENT, true);
    let path = note(&folder, text);
    let error = offline(&folder).get(&MAIN).unwrap_err().to_string();
    let start = format!("{}: found {text:?}, expected a commit", path.display());
    assert!(error.starts_with(&start) && error.contains("remove it"), "{error}");
}

#[test]
fn offline_says_where_the_commit_was_looked_for() {
    let folder = TempDir::new().unwrap();
    let file = RemoteFile { path: "data/u.parquet", ..FILE };
    let wanted = RemoteFiles { files: &[FILE, file], ..MAIN };
    let error = offline(&folder).get(&wanted).unwrap_err().to_string();
    let path = folder.path().join("datasets--some--set/refs/main").display().to_string();
    let command = "`hf download --repo-type dataset some/set data/t.parquet data/u.parquet --revision main`";
    for part in [
        "`data/t.parquet` of data set repository some/set at main is missing",
        &format!("looked for the commit in {path}, and"),
        "unset HF_HUB_OFFLINE",
        command,
    ] {
        assert!(error.contains(part), "{error}");
    }
    // One of the two files is there, so only the other is missing.
    let folder = cache(CONTENT, true);
    let path = note(&folder, REVISION).display().to_string();
    let error = offline(&folder).get(&wanted).unwrap_err().to_string();
    let place = format!("snapshots/{REVISION}/data/u.parquet (the commit in {path})");
    for part in ["`data/u.parquet` of", &place, command] {
        assert!(error.contains(part), "{error}");
    }
}

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
