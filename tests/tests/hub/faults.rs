//! What a Hub and the line to it can do wrong.

use std::time::Duration;

use lmr_pipeline::hub::HubError;
use lmr_tests::hub::{Answer, Delivery, Effect, Fault, Host};
use rstest::rstest;

use super::{FILE, Scene, TOKEN};

fn status(status: u16, code: Option<&str>) -> Effect {
    Effect::Answer(Answer::error(status, code, "as injected"))
}

/// Passing faults, on the Hub's own port or on that of large files.
#[rstest]
#[case::server_error(Fault::new(FILE, status(500, None)).times(2))]
#[case::no_gateway(Fault::new(FILE, status(502, None)).times(2))]
#[case::unavailable_get(Fault::new(FILE, status(503, None)).on("GET").times(2))]
#[case::elsewhere_unavailable(Fault::new("/blobs/", status(504, None)).times(2))]
#[case::rate_limited(Fault::new(FILE, Effect::Answer(Answer::error(429, None, "slow").with("Retry-After", "0"))).times(2))]
#[case::cut(Fault::new("/blobs/", Effect::Deliver(Delivery::Cut(70_000))).times(2))]
#[case::cut_at_once(Fault::new("/blobs/", Effect::Deliver(Delivery::Cut(0))).times(2))]
#[case::stalled(Fault::new("/blobs/", Effect::Deliver(Delivery::Stall(70_000))).times(1))]
#[case::slow(Fault::new("/blobs/", Effect::Deliver(Delivery::Trickle(100_000, Duration::from_millis(10)))))]
#[case::wrong_once(Fault::new("/blobs/", Effect::Corrupt).times(1))]
#[case::error_page_once(Fault::new("/blobs/", Effect::Answer(Answer::bytes("<html>"))).times(1))]
fn passing_faults_are_recovered_from(#[case] fault: Fault) {
    let scene = Scene::new();
    scene.hub.inject(fault);
    let found = scene.get(&scene.client()).unwrap();
    scene.assert_cached(&found);
    scene.hub.forget();
    assert_eq!(scene.get(&scene.client()).unwrap(), found);
    assert!(scene.hub.requests().is_empty(), "a pinned file that is there needs no request");
}

/// Lasting faults: a sentence that says what to do, and nothing that could be taken for the file.
#[rstest]
#[case::login(Fault::new(FILE, status(401, None)), "the Hub wants a login")]
#[case::bad_token(
    Fault::new(FILE, Effect::Answer(Answer::error(401, None, "Invalid credentials in Authorization header"))),
    "does not know this token"
)]
#[case::gated(Fault::new(FILE, status(403, Some("GatedRepo"))), "access to the repository is gated; ask for it")]
#[case::forbidden(Fault::new(FILE, status(403, None)), "refuses access with this token")]
#[case::forbidden_after_a_good_head(Fault::new(FILE, status(403, None)).on("GET"), "refuses access with this token")]
#[case::no_repository(Fault::new(FILE, status(404, Some("RepoNotFound"))), "no such repository, or it is private")]
#[case::no_revision(Fault::new(FILE, status(404, Some("RevisionNotFound"))), "no such revision; check `revision`")]
#[case::no_file(Fault::new(FILE, status(404, Some("EntryNotFound"))), "no such file at this revision")]
#[case::not_found(Fault::new(FILE, status(404, None)).on("GET"), "no such repository, revision or file")]
#[case::rate_limited(Fault::new(FILE, Effect::Answer(Answer::error(429, None, "slow").with("Retry-After", "3600"))), "wants fewer requests (the next one in 3600 s)")]
#[case::server_error(Fault::new(FILE, status(500, None)), "the Hub answered 500 (\"as injected\")")]
#[case::expired(Fault::new("/blobs/", status(410, None)), "no such repository, revision or file")]
#[case::echo(
    Fault::new(FILE, Effect::Answer(Answer::error(400, None, "you sent hf_topsecret"))),
    "the Hub answered 400 (\"you sent …\")"
)]
#[case::signed(
    Fault::new(FILE, Effect::Answer(Answer::error(400, None, "see https://cdn/x?Signature=signed"))),
    "the Hub answered 400;"
)]
#[case::cut(Fault::new("/blobs/", Effect::Deliver(Delivery::Cut(0))), "the Hub cannot be reached")]
#[case::stalled(
    Fault::new("/blobs/", Effect::Deliver(Delivery::Stall(0))),
    "the Hub cannot be reached (operation timed out)"
)]
#[case::error_page(Fault::new("/blobs/", Effect::Answer(Answer::bytes("<html>"))), "has 6 bytes, expected 1200000")]
#[case::wrong_bytes(Fault::new("/blobs/", Effect::Corrupt), "is damaged")]
#[case::etag_is_a_path(Fault::new(FILE, Effect::Header("X-Linked-Etag", "\"../../../../evil\"".into())), "found the ETag \"\\\"../../../../evil\\\"\", expected a SHA-256")]
#[case::commit_is_a_path(Fault::new(FILE, Effect::Header("X-Repo-Commit", "../../../../evil".into())), "found \"../../../../evil\", expected a commit")]
#[case::another_commit(Fault::new(FILE, Effect::Header("X-Repo-Commit", "0".repeat(40))), "is about commit 0000")]
#[case::too_large(Fault::new(FILE, Effect::Header("X-Linked-Size", (5u64 << 30).to_string())), "has 5368709120 bytes; expected at most 4294967296")]
#[case::smaller_than_said(Fault::new(FILE, Effect::Header("X-Linked-Size", "1200001".into())), "expected 1200001 of the file's 1200001")]
#[case::no_size(Fault::new(FILE, Effect::Header("X-Linked-Size", "many".into())), "does not say how large the file is")]
#[case::to_plain_http(Fault::new(FILE, Effect::Answer(Answer::redirect("http://example.org/x?Signature=signed"))).on("GET"), "redirects to http://example.org, which is refused")]
#[case::to_a_file(Fault::new(FILE, Effect::Answer(Answer::redirect("file:///etc/passwd"))).on("GET"), "redirects to file://")]
#[case::in_circles(Fault::new(FILE, Effect::Answer(Answer::redirect("?"))).on("GET"), "redirects again and again")]
fn lasting_faults_are_explained(#[case] fault: Fault, #[case] message: &str) {
    let scene = Scene::new();
    scene.hub.inject(fault);
    let error = scene.get(&scene.client()).unwrap_err();
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("secret") && !shown.contains("signed") && !shown.contains('\n'), "{shown}");
    }
    let shown = error.to_string();
    assert!(
        shown.contains(message) && shown.contains("`deep/model.safetensors` of model repository some/model"),
        "{shown}"
    );
    scene.hub.recover();
    scene.assert_nothing_to_use();
    // And nothing that stands in the way of the real one.
    let found = scene.get(&scene.client()).unwrap();
    scene.assert_cached(&found);
}

#[rstest]
#[case::another_port("http://127.0.0.1:{port}/api/models/some/model/tree/x")]
#[case::another_host("https://example.org/api/models/some/model/tree/x")]
fn the_token_stays_with_the_hub(#[case] next: &str) {
    let scene = Scene::with(vec![("model.safetensors".into(), super::content())]);
    let next = next.replace("{port}", &scene.hub.cdn_port().to_string());
    scene.hub.inject(Fault::new("/tree/", Effect::Header("Link", format!("<{next}>; rel=\"next\""))));
    let error = super::checkpoints::get(&scene, "main", None, false).unwrap_err().to_string();
    assert!(error.contains("names another host for the next page of files"), "{error}");
    scene.hub.recover();
    super::checkpoints::get(&scene, "main", None, false).unwrap();
    let requests = scene.hub.requests();
    assert!(requests.iter().any(|request| request.host == Host::Cdn));
    for request in requests {
        let shown = request.header("authorization");
        assert_eq!(shown.is_some(), request.host == Host::Hub, "{request:?}");
        assert!(shown.is_none_or(|shown| shown == format!("Bearer {TOKEN}")));
    }
}

#[test]
fn no_network_is_said_so() {
    let scene = Scene::new();
    let gone = scene.hub.url().replace(scene.hub.url().rsplit(':').next().unwrap(), "1");
    let error = scene.get(&scene.client_with(&[("HF_ENDPOINT", &gone)])).unwrap_err().to_string();
    assert!(error.contains("the Hub cannot be reached") && error.contains("check the network"), "{error}");
    for endpoint in ["http://example.org", "ftp://127.0.0.1", "nonsense"] {
        let error = scene.get(&scene.client_with(&[("HF_ENDPOINT", endpoint)])).unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT must begin with https://"), "{error}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_said_so() {
    let scene = Scene::new();
    std::fs::write(scene.cache(), "a file").unwrap();
    let error = scene.get(&scene.client()).unwrap_err();
    assert!(matches!(&error, HubError::Io { path, .. } if path.starts_with(scene.cache())), "{error}");
}
