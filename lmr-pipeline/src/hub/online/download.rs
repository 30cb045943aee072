//! One file from the Hub into the cache: what came is verified before it gets a name, and what came of a broken transfer
//! is used by the next one.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use lmr_plugin::run::Event;
use reqwest::blocking::Response;
use reqwest::header::HeaderMap;
use reqwest::{StatusCode, Url};

use super::client::{Client, Fault, broken, shorten, text};
use crate::hub::cache::{self, CachedRepository};
use crate::hub::digest::{Digest, Digests};
use crate::hub::{HubError, HubFile, Refusal, RemoteFile, names};

/// Read, written and reported at a time.
const CHUNK: usize = 1 << 17;
/// A transfer that broke after so many bytes went forward.
const FORWARD: u64 = 1 << 20;
/// Progress is reported this often.
const REPORT_EVERY: Duration = Duration::from_millis(100);
const REMOVED: &str = "what was downloaded has been removed; try again later";

/// What the Hub says about a file.
struct Metadata {
    digest: Digest,
    size: u64,
}

/// A file that is wanted.
pub struct Download<'a> {
    pub client: &'a Client<'a>,
    pub cached: &'a CachedRepository,
    pub commit: &'a str,
    pub file: &'a RemoteFile<'a>,
    /// The file in messages.
    pub described: String,
    pub url: Url,
}

impl Download<'_> {
    /// Downloads, verifies and links.
    pub fn run(&self) -> Result<HubFile, HubError> {
        let headers = self.client.patiently(|| self.client.head(&self.url)).map_err(|fault| self.fail(fault))?;
        let Metadata { digest, size } = self.metadata(&headers).map_err(|fault| self.fail(fault))?;
        if let (Some(expected), Digest::Sha256(found)) = (self.file.sha256, &digest)
            && expected != found
        {
            let (file, found, expected) = (self.described.clone(), found.clone(), expected.to_owned());
            return Err(HubError::Other { file, found, expected });
        }
        if size > self.file.max_bytes {
            let limit = self.file.max_bytes;
            return Err(HubError::TooLarge { file: self.described.clone(), bytes: size, limit });
        }
        let blob = self.cached.blob(&digest);
        let folder = blob.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        let _lock = self.cached.lock(&digest, self.client.observer)?;
        // Another commit may have the same file, or another process may have fetched it meanwhile.
        let there = blob.is_file().then(|| Digests::of(&blob).map_err(HubError::io(&blob))).transpose()?;
        let found = match there.filter(|found| digest.among(found) == digest.name()) {
            Some(found) => found,
            None => self.fetch(&digest, size)?,
        };
        if let Some(expected) = self.file.sha256 {
            let hint = "the Hub has this file, so check `sha256` and `revision`";
            cache::check(&self.described, &blob, &found, &Digest::Sha256(expected.to_owned()), hint)?;
        }
        let path = self.cached.link(self.commit, self.file.path, &digest)?;
        Ok(HubFile { path, sha256: found.sha256, bytes: found.bytes })
    }

    fn fail(&self, fault: Fault) -> HubError {
        fault.about(|reason| HubError::Download { file: self.described.clone(), reason })
    }

    /// Nothing in a header becomes part of a path before it is known to be a digest.
    fn metadata(&self, headers: &HeaderMap) -> Result<Metadata, Fault> {
        let commit = text(headers, "x-repo-commit").unwrap_or_default();
        names::check_commit(commit).map_err(|fault| Fault::malformed(format!("is malformed: {fault}")))?;
        if commit != self.commit {
            return Err(Fault::malformed(format!("is about commit {commit}, not {}", self.commit)));
        }
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).unwrap_or_default();
        let digest = digest_of(etag).ok_or_else(|| {
            Fault::malformed(format!(
                "is malformed: found the ETag \"{}\", expected a SHA-256 or a git blob id",
                shorten(etag)
            ))
        })?;
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let size = size
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| Fault::malformed("does not say how large the file is"))?;
        Ok(Metadata { digest, size })
    }

    /// Downloads until the bytes are right; twice at most. What is wrong is removed, so that nothing takes it for right.
    fn fetch(&self, digest: &Digest, size: u64) -> Result<Digests, HubError> {
        let (partial, blob) = (self.cached.partial(digest), self.cached.blob(digest));
        let io = |error| HubError::io(&partial)(error);
        tracing::info!("downloading {} ({size} bytes)", self.described);
        let mut again = false;
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&partial);
            let mut target = Target { file: file.map_err(io)?, path: &partial, have: 0, size };
            self.fill(&mut target).map_err(|fault| self.fail(fault))?;
            target.file.sync_all().map_err(io)?;
            let found = Digests::of(&partial).map_err(io)?;
            let Err(error) = cache::check(&self.described, &blob, &found, digest, REMOVED) else {
                fs::rename(&partial, &blob).map_err(io)?;
                return Ok(found);
            };
            fs::remove_file(&partial).map_err(io)?;
            if again {
                return Err(error);
            }
            // What an earlier run left, or a passing fault of the server; once more, from nothing.
            tracing::warn!(%error, "downloading once more");
            again = true;
        }
    }

    /// Goes on where the partial file ends, until it is as long as the Hub says.
    fn fill(&self, target: &mut Target) -> Result<(), Fault> {
        let mut tries = self.client.tries();
        target.have = target.file.metadata().map_err(|error| target.here(error))?.len();
        if target.have > target.size {
            target.have = 0;
        }
        while target.have < target.size {
            let begin = target.have;
            let attempt = self.client.get(&self.url, begin).and_then(|response| {
                // After an answer that does not go on there, the next try begins from nothing.
                target.have = 0;
                target.have = start_of(&response, begin, target.size)?;
                self.copy(response, target)
            });
            if let Err(fault) = attempt {
                if target.have >= begin + FORWARD {
                    tries.went_forward();
                }
                tries.wait_after(fault)?;
            }
        }
        target.file.set_len(target.size).map_err(|error| target.here(error))
    }

    /// Writes a body to where the file ends. What was written counts, also where the body breaks off.
    fn copy(&self, mut response: Response, target: &mut Target) -> Result<(), Fault> {
        let have = target.have;
        let ready = target.file.set_len(have).and_then(|()| target.file.seek(SeekFrom::Start(have)));
        ready.map_err(|error| target.here(error))?;
        let mut buffer = vec![0; CHUNK];
        let mut reported = Instant::now();
        self.report(target);
        while target.have < target.size {
            if self.client.observer.cancelled() {
                return Err(Fault::Here(HubError::Interrupted));
            }
            let count = response.read(&mut buffer).map_err(|error| broken(&error))?;
            if count == 0 {
                return Err(Fault::Passing(Refusal::Unreachable("the file ended early".to_owned()), None));
            }
            if count as u64 > target.size - target.have {
                return Err(Fault::malformed(format!("has more than the {} bytes it announces", target.size)));
            }
            target.file.write_all(&buffer[..count]).map_err(|error| target.here(error))?;
            target.have += count as u64;
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                self.report(target);
            }
        }
        self.report(target);
        Ok(())
    }

    fn report(&self, target: &Target) {
        let count = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (done, total) = (count(target.have), count(target.size));
        self.client.observer.event(&Event::Progress { phase: self.file.path, done, total, unit: "byte" });
    }
}

/// A partial file: as far as it is there, and as long as it will be.
struct Target<'a> {
    file: File,
    path: &'a Path,
    have: u64,
    size: u64,
}

impl Target<'_> {
    fn here(&self, error: std::io::Error) -> Fault {
        Fault::Here(HubError::io(self.path)(error))
    }
}

/// Where in the file the body of an answer begins. Whoever does not go on from `have` begins from nothing.
fn start_of(response: &Response, have: u64, size: u64) -> Result<u64, Fault> {
    let again = |what: String| Fault::Passing(Refusal::Malformed(what), None);
    let start = match response.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT => {
            let range = text(response.headers(), "content-range").unwrap_or_default();
            if range.strip_prefix("bytes ").and_then(|range| range.split('-').next()) != Some(have.to_string().as_str())
            {
                return Err(again(format!("goes on elsewhere than at byte {have}")));
            }
            have
        }
        status => return Err(again(format!("has status {}, expected the file", status.as_u16()))),
    };
    let length = text(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
    match length {
        Some(length) if length != size - start => {
            Err(again(format!("has {length} bytes, expected {} of the file's {size}", size - start)))
        }
        _ => Ok(start),
    }
}

/// The digest that the header `ETag` gives.
fn digest_of(etag: &str) -> Option<Digest> {
    Digest::of_name(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("\"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0\"", true)]
    #[case("W/\"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0\"", true)]
    #[case("\"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"", true)]
    #[case("\"2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824\"", false)]
    #[case("\"../../../../../../../../../../../../../../../..\"", false)]
    #[case("\"\"", false)]
    #[case("\"2cf24d-4\"", false)]
    fn only_digests_become_names(#[case] etag: &str, #[case] good: bool) {
        assert_eq!(digest_of(etag).is_some(), good);
    }
}
