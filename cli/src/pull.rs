//! `shoal pull`: brings an image into this node's store, and shows how.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
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
    #[allow(rustdoc::broken_intra_doc_links, reason = "this is help text, whose brackets are no links")]
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
    let mut view = View::new(output, &request.image);
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
    image: String,
    bars: Option<Bars>,
    layers: HashMap<Digest, Layer>,
    /// Whether anything had to come from elsewhere.
    moved: bool,
}

struct Bars {
    all: MultiProgress,
    /// Below the layers' bars.
    total: ProgressBar,
}

struct Layer {
    bar: Option<ProgressBar>,
    have: u64,
    done: bool,
}

impl View {
    fn new(output: Output, image: &str) -> Self {
        let bars = output.is_live().then(Bars::new);
        Self { output, image: image.to_owned(), bars, layers: HashMap::new(), moved: false }
    }

    fn show(&mut self, progress: &PullProgress) -> Result<(), Failure> {
        match *progress {
            PullProgress::Resolved { digest, layers, bytes } => {
                if let Some(bars) = &self.bars {
                    bars.total.set_length(bytes);
                }
                resolved_line(&self.image, digest, layers, bytes).lines().try_for_each(|line| self.line(line))
            }
            PullProgress::Layer { digest, size, have } => self.layer(digest, size, have),
            PullProgress::Done { bytes, milliseconds, .. } => {
                self.clear();
                let line = done_line(bytes, Duration::from_millis(milliseconds), self.moved);
                self.output.line(line)
            }
            PullProgress::Failed { .. } => {
                self.clear();
                Ok(())
            }
        }
    }

    fn layer(&mut self, digest: Digest, size: u64, have: u64) -> Result<(), Failure> {
        let drawn = self.layers.values().filter(|layer| layer.bar.is_some()).count();
        let bars = self.bars.as_ref().filter(|_| drawn < MAX_BARS && have < size);
        let layer = self.layers.entry(digest).or_insert_with(|| Layer {
            bar: bars.map(|bars| bars.add(digest, size)),
            have: 0,
            done: false,
        });
        self.moved |= have < size;
        let before = std::mem::replace(&mut layer.have, have);
        if let Some(bars) = &self.bars {
            bars.total.set_position(bars.total.position().saturating_add(have).saturating_sub(before));
        }
        if let Some(bar) = &layer.bar {
            bar.set_position(have);
        }
        if have < size || layer.done {
            return Ok(());
        }
        layer.done = true;
        if let (Some(bar), Some(bars)) = (layer.bar.take(), &self.bars) {
            bar.finish_and_clear();
            bars.all.remove(&bar);
        }
        self.line(&format!("{}  {:>10}  complete", name(digest), human(size)))
    }

    /// A line above the bars that still run.
    fn line(&self, line: &str) -> Result<(), Failure> {
        match &self.bars {
            Some(bars) => {
                // A terminal that went away is no reason to stop the pull.
                bars.all.println(line).ok();
                Ok(())
            }
            None => self.output.line(line),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            bars.total.finish_and_clear();
            // A terminal that went away has nothing to clear.
            bars.all.clear().ok();
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0).with_style(style(Speed::Shown)).with_prefix("total"));
        Self { all, total }
    }

    fn add(&self, digest: Digest, size: u64) -> ProgressBar {
        let bar = ProgressBar::new(size).with_style(style(Speed::Hidden)).with_prefix(name(digest));
        self.all.insert_before(&self.total, bar)
    }
}

/// Whether a bar tells how fast it moves: only the total moves steadily enough to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speed {
    Shown,
    Hidden,
}

fn style(speed: Speed) -> ProgressStyle {
    let template = match speed {
        Speed::Shown => "{prefix:19}  [{bar:28}] {have:>10} of {size:<10} {speed:>12}",
        Speed::Hidden => "{prefix:19}  [{bar:28}] {have:>10} of {size:<10}",
    };
    let write = |text: &mut dyn std::fmt::Write, bytes: u64, unit: &str| {
        // A bar that cannot be written is no reason to stop the pull.
        write!(text, "{}{unit}", human(bytes)).ok();
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("have", move |state: &ProgressState, text: &mut dyn std::fmt::Write| write(text, state.pos(), ""))
        .with_key("size", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            write(text, state.len().unwrap_or(0), "");
        })
        .with_key("speed", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            write(text, state.per_sec() as u64, "/s");
        })
        .progress_chars("=> ")
}

fn name(digest: Digest) -> String {
    format!("{}:{}", digest.algorithm().name(), digest.short())
}

fn resolved_line(image: &str, digest: Digest, blobs: u32, bytes: u64) -> String {
    let blobs = counted(usize::try_from(blobs).unwrap_or(usize::MAX), "blob");
    let size = human(bytes);
    // Whoever names the digest knows it.
    if image.ends_with(&digest.to_string()) {
        format!("{image}: {blobs}, {size}")
    } else {
        format!("{image}: {blobs}, {size}\n{digest}")
    }
}

fn done_line(bytes: u64, time: Duration, moved: bool) -> String {
    if !moved {
        return format!("done: all {} were in the store already", human(bytes));
    }
    let seconds = time.as_secs_f64();
    let speed = bytes as f64 / seconds.max(0.001);
    format!("done: {} in {seconds:.1} s, {}/s", human(bytes), human(speed as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_layer_is_told_complete_once() {
        let digest = Digest::sha256([7; 32]);
        let mut view = View::new(Output::new(true), "alpine");
        for have in [0, 5, 10, 10] {
            view.show(&PullProgress::Layer { digest, size: 10, have }).unwrap();
            assert_eq!(view.layers[&digest].done, have == 10);
        }
        assert_eq!(view.layers.len(), 1);
        assert!(view.moved);
    }

    #[test]
    fn an_image_that_was_here_is_not_said_to_have_been_fetched() {
        let mut view = View::new(Output::new(true), "alpine");
        view.show(&PullProgress::Layer { digest: Digest::sha256([7; 32]), size: 10, have: 10 }).unwrap();
        assert!(!view.moved);
        assert_eq!(done_line(10, Duration::ZERO, false), "done: all 10 B were in the store already");
    }

    #[test]
    fn the_first_line_says_what_the_name_stands_for_and_the_last_how_long_it_took() {
        let digest = Digest::sha256([0; 32]);
        assert_eq!(resolved_line("alpine", digest, 2, 1024), format!("alpine: 2 blobs, 1.0 KiB\n{digest}"));
        let pinned = format!("alpine@{digest}");
        assert_eq!(resolved_line(&pinned, digest, 1, 5), format!("{pinned}: 1 blob, 5 B"));
        assert_eq!(done_line(3 << 20, Duration::from_millis(1500), true), "done: 3.0 MiB in 1.5 s, 2.0 MiB/s");
    }
}
