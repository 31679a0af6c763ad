//! The cluster's licence: `load-license`, `update-license`, `view-license`, `stat-license`. And what `pstorage-license`, the
//! tool of those who make licences, does.

use crate::{Context, Outcome};
use clap::Args;
use shards::text::{parse_day, parse_size};
use std::path::{Path, PathBuf};
use wire::auth::public_key;
use wire::license::{License, SignedLicense, date, key_text, parse_key, size_text};
use wire::mds_api::{LicenseInfo, MdsReply, MdsRequest};

const DAY_S: u64 = 86_400;

/// Where a licence comes from.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Given {
    /// The licence as one word.
    #[arg(short = 'p', long = "key", value_name = "KEY")]
    key: Option<String>,
    /// A file with the licence; '-' is standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Given {
    fn name(&self) -> String {
        self.file.as_ref().map_or_else(|| "the given key".into(), |file| file.display().to_string())
    }

    fn text(&self) -> Outcome<String> {
        match (&self.key, &self.file) {
            (Some(key), _) => Ok(key.clone()),
            (None, Some(file)) if file == Path::new("-") => {
                std::io::read_to_string(std::io::stdin()).map_err(|e| format!("standard input: {e}"))
            }
            (None, Some(file)) => crate::read_text(file),
            (None, None) => Err("name a licence: -p KEY or -f FILE".into()),
        }
    }
}

/// Gives the cluster a licence; with `renew` only a newer one of the same number.
pub fn load(context: &Context, given: &Given, renew: bool) -> Outcome {
    let text = given.text()?;
    // What is plainly wrong is told without the cluster.
    let license = SignedLicense::parse(&text)
        .map_err(|why| format!("{}: this is no valid licence: {why}", given.name()))?
        .license;
    context.link()?.ask(&MdsRequest::LoadLicense { text, renew })?;
    let done = if renew { "updated" } else { "loaded" };
    println!("License {} was {done} ({}).", license.key_number, license.limits());
    Ok(())
}

fn info(context: &Context) -> Outcome<LicenseInfo> {
    match context.link()?.ask(&MdsRequest::GetLicense)? {
        MdsReply::License(info) => Ok(*info),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

fn days(seconds: u64) -> String {
    match seconds % DAY_S {
        0 => format!("{} days", seconds / DAY_S),
        _ => format!("{seconds} seconds"),
    }
}

fn print_license(license: &License) {
    let size = |bytes| if bytes == 0 { "none".to_string() } else { size_text(bytes) };
    for (name, value) in [
        ("key number", license.key_number.clone()),
        ("product", license.product.clone()),
        ("owner", license.owner.clone()),
        ("cluster", if license.cluster.is_empty() { "any".into() } else { license.cluster.clone() }),
        ("issued", date(license.issued_s)),
        ("expiration", license.expiration_text()),
        ("graceperiod", days(license.grace_s)),
        ("capacity", license.capacity_text()),
        ("grace capacity", size(license.grace_capacity_bytes)),
    ] {
        println!("  {name:<15} {value}");
    }
}

/// What the licence says.
pub fn view(context: &Context) -> Outcome {
    let info = info(context)?;
    if context.json {
        return crate::print_json(&info);
    }
    match &info.license {
        Some(signed) => {
            println!("License of cluster '{}':", context.cluster()?);
            print_license(&signed.license);
        }
        None => println!(
            "Cluster '{}' has no license and needs none: the software is free, without limits.",
            context.cluster()?
        ),
    }
    Ok(())
}

/// How it stands.
pub fn stat(context: &Context) -> Outcome {
    let info = info(context)?;
    if context.json {
        return crate::print_json(&info);
    }
    println!("Status:     {}", info.status.explained());
    if let Some(signed) = &info.license {
        println!("Expiration: {}", signed.license.expiration_text());
        println!("Capacity:   {}", signed.license.capacity_text());
    }
    println!("Used:       {}", size_text(info.used_bytes));
    Ok(())
}

/// What a maker says of a licence.
#[derive(Args)]
pub struct Terms {
    /// File with the maker's secret key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Number of the licence; a renewed one has the same.
    #[arg(long)]
    number: String,
    #[arg(long)]
    owner: String,
    #[arg(long, default_value = "pstorage")]
    product: String,
    /// Name of the cluster it is for. [default: any]
    #[arg(long, default_value = "", hide_default_value = true)]
    cluster: String,
    /// Of users' data, such as 10T. [default: unlimited]
    #[arg(long, value_parser = |s: &str| parse_size(s, 1), allow_hyphen_values = true)]
    capacity: Option<u64>,
    /// Tolerated on top of it.
    #[arg(long, value_parser = |s: &str| parse_size(s, 1), allow_hyphen_values = true)]
    grace_capacity: Option<u64>,
    /// The day on which it ends (UTC), such as 2027-12-31. [default: never]
    #[arg(long, value_name = "DAY", value_parser = |s: &str| parse_day(s))]
    expires: Option<u64>,
    /// Tolerated after that.
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u64).range(..=100_000))]
    grace_days: u64,
    /// Write it there instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Makes a maker's key and says its public half.
pub fn new_key(file: &Path) -> Outcome {
    if file.exists() {
        return Err(format!(
            "{} exists: a maker's key is never replaced by accident. Name another file",
            file.display()
        ));
    }
    let secret: [u8; 32] = shards::host::random_bytes();
    shards::ring::replace_secret(file, format!("{}\n", key_text(&secret)).as_bytes())
        .map_err(shards::text::at(&file))?;
    println!("{}", key_text(&public_key(&secret)));
    eprintln!(
        "The public key above belongs into ETC/license-makers of the metadata servers' hosts. {} stays with you.",
        file.display()
    );
    Ok(())
}

/// Makes a licence.
pub fn sign(terms: Terms) -> Outcome {
    let secret = parse_key(&crate::read_text(&terms.key)?)
        .ok_or_else(|| format!("{}: 64 hexadecimal digits are expected", terms.key.display()))?;
    for (option, text) in
        [("--number", &terms.number), ("--owner", &terms.owner), ("--product", &terms.product)]
    {
        if text.trim().is_empty() {
            return Err(format!("{option} is empty: a licence has one"));
        }
    }
    let now_s = shards::host::unix_ms() / 1000;
    if terms.expires.is_some_and(|end_s| end_s <= now_s) {
        eprintln!("pstorage-license: --expires is a day that has passed: this licence has ended already");
    }
    if !terms.cluster.is_empty() {
        wire::check_cluster_name(&terms.cluster)?;
    }
    let license = License {
        key_number: terms.number,
        product: terms.product,
        owner: terms.owner,
        cluster: terms.cluster,
        capacity_bytes: terms.capacity.unwrap_or(0),
        grace_capacity_bytes: terms.grace_capacity.unwrap_or(0),
        issued_s: now_s,
        expires_s: terms.expires.unwrap_or(0),
        grace_s: terms.grace_days.saturating_mul(DAY_S),
    };
    let signed = license.sign(&secret)?;
    match &terms.out {
        Some(file) => {
            std::fs::write(file, signed.text()).map_err(shards::text::at(&file))?;
            println!("{}", signed.key());
        }
        None => print!("{}", signed.text()),
    }
    Ok(())
}

/// What a file with a licence says.
pub fn show(file: &Path) -> Outcome {
    let signed =
        SignedLicense::parse(&crate::read_text(file)?).map_err(|why| format!("{}: {why}", file.display()))?;
    println!("{}: the signature is right.", file.display());
    print_license(&signed.license);
    println!("As one word, for load-license -p:\n{}", signed.key());
    Ok(())
}
