//! Writing to a model repository: what is there, and one commit on top of it.
//!
//! What is there is read as everywhere here. The commit is hf-hub's, which knows how large files go over the line; it runs
//! on a thread of its own, so that whoever waits can be told of progress and may stop.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use hf_hub::progress::{Progress, ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{CommitOperation, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFResult};
use lmr_plugin::run::{Event, Observer};

use super::client::{Client, Fault, shorten};
use super::tree::{self, Listed};
use super::{Info, MAX_INFO};
use crate::hub::{Hub, HubError, Refusal, RepoKind, names};

const KIND: RepoKind = RepoKind::Model;
/// How often is looked whether the user wants to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The Hub may take long to put a commit together; a dead line is given up after this.
const ANSWER: Duration = Duration::from_secs(300);

/// A branch of a model repository to write to.
pub(crate) struct Writer<'a> {
    hub: &'a Hub,
    token: &'a str,
    client: Client<'a>,
    repo: &'a str,
    branch: &'a str,
    observer: &'a dyn Observer,
}

/// Why nothing was written, as far as that is known.
#[derive(Debug)]
pub(crate) enum UploadError {
    /// The user asked to stop.
    Interrupted,
    /// The branch is no longer where it was.
    Moved,
    /// The line broke or the Hub failed: perhaps it was written after all.
    Broken(String),
    /// The Hub refuses, and will again.
    Refused(String),
}

impl Hub {
    /// A branch to write to. Nothing is asked yet; an error says what is missing on this machine.
    pub(crate) fn writer<'a>(
        &'a self,
        repo: &'a str,
        branch: &'a str,
        observer: &'a dyn Observer,
    ) -> Result<Writer<'a>, UploadError> {
        if self.offline {
            let message = "HF_HUB_OFFLINE forbids uploads; unset it, or write the folder alone with --dry-run";
            return Err(UploadError::Refused(message.into()));
        }
        let Some(token) = self.token.as_deref() else {
            let message = "there is no token; make one that may write at https://huggingface.co/settings/tokens, then set \
                           HF_TOKEN to it or run `hf auth login`";
            return Err(UploadError::Refused(message.into()));
        };
        let client = self.client(observer).map_err(|reason| UploadError::Refused(reason.to_string()))?;
        Ok(Writer { hub: self, token, client, repo, branch, observer })
    }
}

impl Writer<'_> {
    /// The commit the branch is at; `None` if there is no such repository.
    pub fn head(&self) -> Result<Option<String>, UploadError> {
        let (owner, name) = self.repo.split_once('/').unwrap_or((self.repo, ""));
        let url = self.client.url(["api", KIND.plural(), owner, name, "revision", self.branch]);
        let found = self.client.json::<Info>(&url, MAX_INFO);
        let commit = match found {
            Ok((info, _)) => info.sha.unwrap_or_default(),
            // To an account that may not see it, the Hub says the same of a private repository.
            Err(Fault::Lasting(Refusal::NoRepository | Refusal::Login)) => return Ok(None),
            Err(Fault::Lasting(Refusal::NoRevision)) => {
                let message = format!("there is no branch {}; create it on the repository's page", self.branch);
                return Err(UploadError::Refused(message));
            }
            Err(Fault::Here(HubError::Interrupted)) => return Err(UploadError::Interrupted),
            Err(fault) => return Err(UploadError::Refused(said(fault))),
        };
        let checked = names::check_commit(&commit);
        checked.map_err(|fault| UploadError::Refused(format!("the Hub's answer is malformed: {fault}")))?;
        Ok(Some(commit))
    }

    /// The files at a commit by their paths.
    pub fn files(&self, commit: &str) -> Result<BTreeMap<String, Listed>, UploadError> {
        let listed = tree::entries(&self.client, KIND, self.repo, commit);
        let listed = listed.map_err(|error| match error {
            HubError::Interrupted => UploadError::Interrupted,
            error => UploadError::Refused(error.to_string()),
        })?;
        Ok(listed.into_iter().map(|listed| (listed.path.clone(), listed)).collect())
    }

    /// Makes the repository; one that is there stays as it is.
    pub fn create(&self, private: bool) -> Result<(), UploadError> {
        let repo = self.repo.to_owned();
        self.apart(move |client, _| {
            let create = client.create_repository().repo_id(&repo).repo_type(RepoTypeModel);
            create.private(private).exist_ok(true).send().map(drop)
        })
    }

    /// One commit that adds or replaces files, if the branch is still at `parent`.
    pub fn commit(&self, parent: &str, files: Vec<(String, Vec<u8>)>, message: String) -> Result<String, UploadError> {
        let (repo, branch, parent) = (self.repo.to_owned(), self.branch.to_owned(), parent.to_owned());
        let commit = self.apart(move |client, progress| {
            let add = |(path, bytes): (String, Vec<u8>)| CommitOperation::add_bytes(path, bytes);
            let operations: Vec<CommitOperation> = files.into_iter().map(add).collect();
            let (owner, name) = hf_hub::split_id(&repo);
            let repository = client.model(owner, name);
            let commit = repository.create_commit().operations(operations).commit_message(message);
            commit.revision(branch).parent_commit(parent).progress(progress).send()
        })?;
        let commit = commit.commit_oid.unwrap_or_default();
        let checked = names::check_commit(&commit);
        checked.map_err(|fault| UploadError::Broken(format!("the Hub's answer is malformed: {fault}")))?;
        Ok(commit)
    }

    /// Where people see a commit.
    pub fn commit_url(&self, commit: &str) -> String {
        format!("{}/{}/commit/{commit}", self.hub.endpoint.trim_end_matches('/'), self.repo)
    }

    /// Does something with hf-hub's client on another thread. Asked to stop, it is left behind: a commit arrives as a
    /// whole or not at all.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(HFClientSync, Progress) -> HFResult<T> + Send + 'static,
    ) -> Result<T, UploadError> {
        let client = self.hf_client().map_err(|error| self.explain(error))?;
        let (bytes, sent) = mpsc::channel();
        let (result, finished) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody listens any more if the user stopped.
            let _ = result.send(work(client, Progress::new(Meter(bytes))));
        });
        loop {
            for (done, total) in sent.try_iter() {
                self.observer.event(&Event::Progress { phase: "uploading", done, total, unit: "sent byte" });
            }
            match finished.recv_timeout(LOOK_EVERY) {
                Ok(result) => return result.map_err(|error| self.explain(error)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(UploadError::Broken("the transfer ended without a result".into()));
                }
                Err(RecvTimeoutError::Timeout) if self.observer.cancelled() => return Err(UploadError::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn hf_client(&self) -> HFResult<HFClientSync> {
        let builder = reqwest::Client::builder().user_agent(concat!("lmr/", env!("CARGO_PKG_VERSION")));
        let builder = builder.connect_timeout(self.hub.patience.connect).read_timeout(ANSWER);
        let builder = if self.hub.endpoint.starts_with("http:") { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(|source| HFError::Request { source, url: None })?;
        HFClient::builder()
            .client(http)
            .endpoint(self.hub.endpoint.trim_end_matches('/'))
            .token(self.token)
            .cache_dir(&self.hub.cache)
            .build_sync()
    }

    /// What an error of hf-hub means, without addresses, which can be signed, and without the token.
    fn explain(&self, error: HFError) -> UploadError {
        match error {
            HFError::AuthRequired { .. } => UploadError::Refused(Refusal::Token.to_string()),
            HFError::Forbidden { .. } => UploadError::Refused(
                "this token may not write there; take one with the right to write to this account or organization \
                 (https://huggingface.co/settings/tokens), and check the name"
                    .into(),
            ),
            HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => {
                UploadError::Refused(Refusal::NoRepository.to_string())
            }
            HFError::RateLimited { retry_after, .. } => {
                UploadError::Refused(Refusal::RateLimited(retry_after).to_string())
            }
            HFError::Http { context } if context.status.as_u16() == 412 => UploadError::Moved,
            HFError::Conflict { .. } => UploadError::Moved,
            HFError::Http { context } => {
                let said = context.server_message.as_deref().unwrap_or_default().replace(self.token, "…");
                let said = if said.is_empty() || said.contains("://") { String::new() } else { shorten(&said) };
                let said = if said.is_empty() { said } else { format!(" (\"{said}\")") };
                let message = format!("the Hub answered {}{said}", context.status.as_u16());
                if context.status.is_server_error() {
                    UploadError::Broken(message)
                } else {
                    UploadError::Refused(message)
                }
            }
            HFError::Request { source, .. } if source.is_connect() => {
                UploadError::Broken("the Hub cannot be reached; check the network and HF_ENDPOINT".into())
            }
            HFError::Request { .. } => UploadError::Broken("the connection broke off".into()),
            _ => UploadError::Broken("the transfer failed".into()),
        }
    }
}

/// Passes on how many bytes were sent.
struct Meter(mpsc::Sender<(usize, usize)>);

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, total_bytes, .. }) = event {
            let _ = self.0.send((*bytes_completed as usize, *total_bytes as usize));
        }
    }
}

/// A fault of reading in words.
fn said(fault: Fault) -> String {
    match fault {
        Fault::Passing(reason, _) | Fault::Lasting(reason) => reason.to_string(),
        Fault::Here(error) => error.to_string(),
    }
}
