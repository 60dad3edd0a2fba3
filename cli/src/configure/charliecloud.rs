//! `shoal configure charliecloud`: a CA bundle with the daemon's in it, and the environment that names it.
//!
//! `ch-image` speaks HTTPS only, knows no mirrors, and takes its settings from the environment.

use std::{
    fs,
    path::{Path, PathBuf},
};

use url::Url;

use super::{
    MirrorArgs, Report,
    edit::{OwnFile, is_own, own_line, read},
    names,
};
use crate::failure::{CANNOT_CREATE, Failure, USAGE};

pub(super) const LONG_ABOUT: &str = "\
Let Charliecloud's ch-image trust the daemon's TLS listener

ch-image speaks HTTPS only and knows no mirrors: the daemon needs a TLS listener (registry_tls_listen), and images are named \
through it, for example ch-image pull localhost:5053/docker.io/library/alpine:3. There is no way around a daemon that is away.

Writes DIR/charliecloud-ca.pem, the system's CA certificates and the daemon's, and DIR/charliecloud.sh, which sets \
REQUESTS_CA_BUNDLE to it: source it in a shell profile or a module file. With --registry NAME it also makes names without a \
registry (alpine:3) mean images of NAME through the daemon. Run it again when the system's certificates changed.";

const BUNDLE: &str = "charliecloud-ca.pem";
const ENVIRONMENT: &str = "charliecloud.sh";

/// Where distributions keep all certificates in one file: Debian, Fedora, SUSE, Alpine.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug, clap::Args)]
pub(crate) struct CharliecloudArgs {
    /// The registry of names without one; at most one
    #[arg(long, value_name = "NAME")]
    registry: Vec<String>,
    /// Where the daemon's TLS listener is
    #[arg(long, value_name = "URL", default_value = "https://localhost:5053")]
    endpoint: String,
    /// The daemon's CA certificate; the daemon logs where it is
    #[arg(long, value_name = "FILE", default_value = "/var/lib/shoal/tls/ca.pem")]
    ca: PathBuf,
    /// Where the two files are written
    #[arg(long, value_name = "DIR", default_value = "/etc/shoal")]
    dir: PathBuf,
    /// Take the files away
    #[arg(long)]
    remove: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn configure(args: &CharliecloudArgs) -> Result<Report, Failure> {
    let endpoint = names::endpoint(&args.endpoint)?;
    let (host, port) = host_and_port(&endpoint)?;
    args.registry.iter().try_for_each(|name| names::check_as_path(name))?;
    if args.registry.len() > 1 {
        return Err(Failure::new(USAGE, "--registry: names without a registry can only mean one"));
    }
    let script = args.dir.join(ENVIRONMENT);
    if read(&script)?.is_some_and(|text| !is_unedited(&text)) {
        let message = format!(
            "{}: the file was left alone, it was not written, or was changed, by somebody other than `shoal configure`; move it \
             away, or choose another --dir",
            script.display()
        );
        return Err(Failure::new(CANNOT_CREATE, message));
    }
    let mut warnings = Vec::new();
    let certificates = if args.remove { String::new() } else { certificates(&args.ca, &mut warnings)? };
    let bundle = args.dir.join(BUNDLE);
    let files =
        [(bundle.clone(), certificates), (script.clone(), environment(&bundle, &host, port, args.registry.first())?)];
    let shared = MirrorArgs { remove: args.remove, dry_run: args.dry_run, ..MirrorArgs::default() };
    let mut plans = Vec::new();
    for (path, content) in files {
        let by_hand = format!("move it away, or choose another --dir than {}", args.dir.display());
        plans.push(shared.plan(&path, &OwnFile { content: own_line("charliecloud") + &content, by_hand })?);
    }
    let mut report = shared.carry_out(plans)?;
    report.warnings = warnings;
    if !args.remove {
        report.next.push(format!("In a shell profile: . {}", script.display()));
        report.next.push(format!("Then: ch-image pull {host}:{port}/docker.io/library/alpine:3"));
        report.next.push(
            "ch-image has no fallback: without the daemon it pulls images by their registry's own name only."
                .to_owned(),
        );
    }
    Ok(report)
}

fn host_and_port(endpoint: &str) -> Result<(String, u16), Failure> {
    let url = Url::parse(endpoint).ok().filter(|url| url.scheme() == "https");
    let parts = url.as_ref().and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
    parts.ok_or_else(|| {
        Failure::new(
            USAGE,
            "--endpoint: ch-image speaks HTTPS only; the form is https://HOST:PORT, where the daemon's TLS listener is",
        )
    })
}

/// The system's and the daemon's: the variable replaces the set that Python would use.
fn certificates(ca: &Path, warnings: &mut Vec<String>) -> Result<String, Failure> {
    let own = fs::read_to_string(ca).map_err(|error| {
        let advice = "start the daemon with registry_tls_listen, or name its CA certificate with --ca";
        Failure::new(CANNOT_CREATE, format!("cannot read {}: {error}; {advice}", ca.display()))
    })?;
    if !own.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Failure::new(USAGE, format!("--ca: {} has no PEM certificate in it", ca.display())));
    }
    if own.contains("PRIVATE KEY-----") {
        return Err(Failure::new(
            USAGE,
            format!("--ca: {} has a private key in it; name the certificate alone", ca.display()),
        ));
    }
    let system = SYSTEM_BUNDLES.iter().find_map(|file| fs::read_to_string(file).ok());
    if system.is_none() {
        warnings.push(
            "the system's CA certificates were not found: with this bundle ch-image trusts the daemon only".to_owned(),
        );
    }
    let newline = |text: String| if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" };
    Ok(newline(system.unwrap_or_default()) + &newline(own))
}

fn environment(bundle: &Path, host: &str, port: u16, registry: Option<&String>) -> Result<String, Failure> {
    let bundle = bundle.display().to_string();
    if bundle.contains(['\'', '\n']) {
        return Err(Failure::new(USAGE, "--dir: a quote or a line end may not be in it"));
    }
    let mut text = format!("export REQUESTS_CA_BUNDLE='{bundle}'\n");
    if let Some(registry) = registry {
        text.push_str(&format!(
            "export CH_REGY_DEFAULT_HOST='{host}'\nexport CH_REGY_DEFAULT_PORT='{port}'\nexport CH_REGY_PATH_PREFIX='{registry}'\n"
        ));
    }
    Ok(text)
}

/// Whether the script has no line but such as we write.
fn is_unedited(text: &str) -> bool {
    let ours = ["REQUESTS_CA_BUNDLE", "CH_REGY_DEFAULT_HOST", "CH_REGY_DEFAULT_PORT", "CH_REGY_PATH_PREFIX"];
    let known = |line: &str| ours.iter().any(|name| line.starts_with(&format!("export {name}='")));
    is_own(text) && text.lines().skip(1).all(known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{super::edit::Action, *};

    const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

    fn args(directory: &tempfile::TempDir) -> CharliecloudArgs {
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, CA).unwrap();
        CharliecloudArgs {
            registry: Vec::new(),
            endpoint: "https://localhost:5053".to_owned(),
            ca,
            dir: directory.path().join("shoal"),
            remove: false,
            dry_run: false,
        }
    }

    fn actions(args: &CharliecloudArgs) -> Vec<Action> {
        configure(args).unwrap().files.iter().map(|file| file.action).collect()
    }

    #[test]
    fn a_bundle_and_an_environment_are_written_and_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        assert_eq!(actions(&args), [Action::Created; 2]);
        assert!(fs::read_to_string(args.dir.join(BUNDLE)).unwrap().ends_with(CA));
        let environment = fs::read_to_string(args.dir.join(ENVIRONMENT)).unwrap();
        assert!(environment.ends_with(&format!("export REQUESTS_CA_BUNDLE='{}'\n", args.dir.join(BUNDLE).display())));
        assert_eq!(actions(&args), [Action::Unchanged; 2]);
        args.registry = vec!["docker.io".to_owned()];
        assert_eq!(actions(&args), [Action::Unchanged, Action::Updated]);
        let environment = fs::read_to_string(args.dir.join(ENVIRONMENT)).unwrap();
        assert!(
            environment.contains("CH_REGY_DEFAULT_PORT='5053'")
                && environment.contains("CH_REGY_PATH_PREFIX='docker.io'")
        );
        args.remove = true;
        assert_eq!(actions(&args), [Action::Removed; 2]);
        assert_eq!(fs::read_dir(&args.dir).unwrap().count(), 0);
    }

    #[test]
    fn a_script_that_was_edited_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        configure(&args).unwrap();
        let script = args.dir.join(ENVIRONMENT);
        let edited = fs::read_to_string(&script).unwrap() + "module load python\n";
        fs::write(&script, &edited).unwrap();
        for remove in [false, true] {
            args.remove = remove;
            assert!(configure(&args).unwrap_err().to_string().contains("left alone"));
        }
        assert_eq!(fs::read_to_string(&script).unwrap(), edited);
        assert!(args.dir.join(BUNDLE).exists(), "nothing is half done");
    }

    #[test]
    fn what_is_no_certificate_is_refused_and_a_key_is_never_copied() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(&directory);
        for text in ["", "hello", &format!("{CA}-----BEGIN PRIVATE KEY-----\nsecret\n")] {
            fs::write(&args.ca, text).unwrap();
            let failure = configure(&args).unwrap_err().to_string();
            assert!(failure.contains("--ca") && !failure.contains("secret"), "{failure}");
        }
        fs::remove_file(&args.ca).unwrap();
        assert!(configure(&args).unwrap_err().to_string().contains("registry_tls_listen"));
        assert!(!args.dir.exists());
    }

    #[test]
    fn only_https_and_only_one_default_registry() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        args.registry = vec!["docker.io".to_owned(), "ghcr.io".to_owned()];
        assert!(configure(&args).is_err());
        args.registry.truncate(1);
        args.endpoint = "http://127.0.0.1:5050".to_owned();
        assert!(configure(&args).unwrap_err().to_string().contains("HTTPS only"));
    }
}
