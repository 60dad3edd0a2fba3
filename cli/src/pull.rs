//! `shoal pull`: brings an image into this node's store, and shows how.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_proto::{
    digest::Digest,
    status::{PullProgress, PullRequest},
};

use crate::{
    args::NodeArgs,
    control::Control,
    failure::{Failure, GENERAL, UNAVAILABLE},
    output::{Output, counted, human},
};

pub(crate) const AFTER_HELP: &str = "\
Images are named as everywhere: alpine, ghcr.io/team/app:v1, registry.test:5000/app@sha256:...
Their registry must be one of the daemon's upstreams. With --json each event is one line of JSON.";

/// Layers drawn at a time: an image may have more than a screen has lines.
const MAX_BARS: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// The image: [REGISTRY/]NAME[:TAG][@DIGEST]
    image: String,
    /// Which one of a multi-platform image, for example linux/arm64 [default: the daemon's own]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) async fn run(args: PullArgs, output: Output) -> Result<ExitCode, Failure> {
    let request = PullRequest { image: args.image, platform: args.platform };
    let control = Control::of(&args.node)?;
    let mut lines = control.post("/v1/pull", &request).await?;
    let mut view = View::new(output);
    while let Some(progress) = lines.next::<PullProgress>().await? {
        if output.is_json() {
            let line = serde_json::to_string(&progress)
                .map_err(|error| Failure::new(GENERAL, format!("cannot write progress as JSON: {error}")))?;
            output.line(line)?;
        } else {
            view.show(&progress)?;
        }
        match progress {
            PullProgress::Done { .. } => return Ok(ExitCode::SUCCESS),
            PullProgress::Failed { message } => {
                return Err(Failure::new(GENERAL, format!("{}: {message}", request.image)));
            }
            PullProgress::Resolved { .. } | PullProgress::Layer { .. } => {}
        }
    }
    Err(Failure::new(UNAVAILABLE, "the daemon broke off before the pull was done; is it shutting down?"))
}

/// Bars on a terminal, lines elsewhere.
struct View {
    output: Output,
    bars: Option<MultiProgress>,
    layers: HashMap<Digest, Layer>,
}

struct Layer {
    bar: Option<ProgressBar>,
    done: bool,
}

impl View {
    fn new(output: Output) -> Self {
        Self { output, bars: output.is_live().then(MultiProgress::new), layers: HashMap::new() }
    }

    fn show(&mut self, progress: &PullProgress) -> Result<(), Failure> {
        match *progress {
            PullProgress::Resolved { digest, layers, bytes } => self.output.line(format_args!(
                "{digest}: {}, {}",
                counted(usize::try_from(layers).unwrap_or(usize::MAX), "layer"),
                human(bytes)
            )),
            PullProgress::Layer { digest, size, have } => self.layer(digest, size, have),
            PullProgress::Done { digest, bytes, milliseconds } => {
                self.clear();
                self.output.line(done_line(digest, bytes, Duration::from_millis(milliseconds)))
            }
            PullProgress::Failed { .. } => {
                self.clear();
                Ok(())
            }
        }
    }

    fn layer(&mut self, digest: Digest, size: u64, have: u64) -> Result<(), Failure> {
        let drawn = self.layers.values().filter(|layer| layer.bar.is_some() && !layer.done).count();
        let bars = self.bars.as_ref().filter(|_| drawn < MAX_BARS);
        let layer = self
            .layers
            .entry(digest)
            .or_insert_with(|| Layer { bar: bars.map(|bars| bars.add(bar(digest, size))), done: false });
        if let Some(bar) = &layer.bar {
            bar.set_position(have);
        }
        if have < size || layer.done {
            return Ok(());
        }
        layer.done = true;
        if let Some(bar) = layer.bar.take() {
            bar.finish_and_clear();
        }
        let line = format!("{}:{}  {}  done", digest.algorithm().name(), digest.short(), human(size));
        match &self.bars {
            // Above the bars that still run. A terminal that went away is no reason to stop the pull.
            Some(bars) => {
                bars.println(line).ok();
                Ok(())
            }
            None => self.output.line(line),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            // A terminal that went away has nothing to clear.
            bars.clear().ok();
        }
    }
}

fn bar(digest: Digest, size: u64) -> ProgressBar {
    let template = "{prefix}  {bar:30}  {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(size).with_style(style).with_prefix(format!("{}:{}", digest.algorithm().name(), digest.short()))
}

fn done_line(digest: Digest, bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!("{digest}: done, {} in {seconds:.1} s", human(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_layer_is_told_done_once() {
        let digest = Digest::sha256([7; 32]);
        let mut view = View { output: Output::new(false), bars: None, layers: HashMap::new() };
        for have in [0, 5, 10, 10] {
            view.show(&PullProgress::Layer { digest, size: 10, have }).unwrap();
            assert_eq!(view.layers[&digest].done, have == 10);
        }
        assert_eq!(view.layers.len(), 1);
    }

    #[test]
    fn the_last_line_says_what_and_how_long() {
        let line = done_line(Digest::sha256([0; 32]), 1 << 20, Duration::from_millis(1500));
        assert_eq!(line, format!("sha256:{}: done, 1.0 MiB in 1.5 s", "00".repeat(32)));
    }
}
