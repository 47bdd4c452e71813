//! `rpcrdma mkdir`.

use clap::Args;
use rpcrdma::{client::Target, error::Error, nfs::v3::Status};

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    fs::{Change, Dir, FsError},
    out,
};

/// Make directories on a server
#[derive(Args)]
#[command(after_help = "\
Example:
  rpcrdma mkdir -p nfs://server/srv/data/new/deep/directory")]
pub(crate) struct Mkdir {
    /// Directories to make, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// Make the directories above too, and accept one that exists
    #[arg(short, long)]
    parents: bool,

    /// Permissions in octal
    #[arg(short, long, value_name = "MODE", default_value = "755", value_parser = parse_mode)]
    mode: u32,

    #[command(flatten)]
    client: ClientOptions,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|m| *m <= 0o7777)
        .ok_or_else(|| "it is an octal number up to 7777".to_owned())
}

impl Mkdir {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let mut failures = 0;
        for url in &self.urls {
            if let Err(failure) = self.one(&mut session, url).await {
                out::failure(&failure);
                failures += 1;
            }
        }
        Ok(exit(failures))
    }

    async fn one(&self, session: &mut Session, url: &Target) -> Result<(), Failure> {
        if self.parents {
            return self.all(session, url).await;
        }
        let place = session.resolve_url(url).await?;
        if place.found.is_some() {
            let there = Error::Nfs { procedure: "MKDIR", status: Status::EXIST };
            return Err(Failure::of(url, there));
        }
        let Some((dir, name)) = place.parent else { return Ok(()) };
        self.make(&dir, &name).await.map(|_| ()).map_err(|e| Failure::of(url, e))
    }

    async fn make(&self, dir: &Dir, name: &[u8]) -> Result<Dir, FsError> {
        let (made, new) = dir.make_dir(name).await?;
        if new {
            made.change_self(Change { mode: Some(self.mode), ..Change::default() }).await?;
        }
        Ok(made)
    }

    /// Makes what is missing of a path, from the top down.
    async fn all(&self, session: &mut Session, url: &Target) -> Result<(), Failure> {
        // The deepest directory that exists, found from the bottom up.
        let components: Vec<&[u8]> =
            url.path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        let mut depth = components.len();
        let mut first = None;
        let mut dir = loop {
            let path = [b"/", components[..depth].join(&b'/').as_slice()].concat();
            match session.resolve_url(&Target { path, ..url.clone() }).await {
                Ok(place) => match (place.dir, place.found) {
                    (Some(dir), _) => break dir,
                    (None, Some(_)) => {
                        return Err(Failure::of(place.shown, "it is in the way and not a directory"));
                    }
                    (None, None) if depth > 0 => depth -= 1,
                    (None, None) => return Err(Failure::of(url, "there is nothing to make it in")),
                },
                Err(failure) if failure.is_fatal() || depth == 0 => return Err(first.unwrap_or(failure)),
                Err(failure) => {
                    first.get_or_insert(failure);
                    depth -= 1;
                }
            }
        };
        for name in &components[depth..] {
            dir = self.make(&dir, name).await.map_err(|e| Failure::of(url, e))?;
        }
        Ok(())
    }
}
