//! `dashboard`: a page of the cluster for browsers, which can change nothing.
//!
//! One thread looks at the cluster as `top` does and keeps a [`model`]; [`api`] tells parts of it, [`guard`] says to whom. The page
//! (`page/`) asks for what it shows.

mod api;
mod guard;
mod model;
mod topology;

use super::auth::ask_password;
use super::explain;
use crate::mds_link::MdsLink;
use crate::news::Watch;
use crate::{Context, Outcome};
use api::{place_ids, unescaped};
use clap::Args;
use guard::{Guard, PasswordHash};
use model::{Model, Moment};
use serde_json::Value;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use topology::Wish;
use web::{Answer, Limits, Request, Server, TlsFiles};
use wire::CsId;
use wire::mds_api::{ExplainTarget, Severity, mds_to_try};

const LIMITS: Limits = Limits { connections: 64, patience: Duration::from_secs(5) };
/// Events that are told when nobody says how many.
const EVENTS: usize = 100;

/// Nothing is loaded from elsewhere, nothing is framed or kept; what is not one of the page's own files does not run.
const HEADERS: [(&str, &str); 6] = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
];

/// The page: path, kind, contents.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("/", "text/html; charset=utf-8", include_bytes!("page/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("page/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("page/style.css")),
];

#[derive(Args)]
pub struct Arguments {
    /// Where to serve it. Others than loopback addresses need a password.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9530")]
    listen: SocketAddr,
    /// Ask browsers for the password in this file (any user name).
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Serve https with this certificate and those of its authorities (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let the password pass unencrypted: for an address that only a proxy with TLS reaches.
    #[arg(long, conflicts_with = "tls_cert")]
    plain_http: bool,
    /// Milliseconds between two looks at the cluster.
    #[arg(short = 'T', long = "refresh-time", value_name = "MS", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(500..=60_000))]
    refresh_ms: u64,
}

impl Arguments {
    fn check(&self) -> Outcome {
        let addr = self.listen;
        if addr.ip().is_loopback() {
            return Ok(());
        }
        let (advice, missing) = match (&self.password_file, &self.tls_cert) {
            (None, _) => ("give it one with --password-file, or listen on 127.0.0.1", "without a password"),
            (Some(_), None) if !self.plain_http => (
                "give it a certificate with --tls-cert and --tls-key, or say --plain-http if only a proxy with TLS reaches it",
                "and the password be heard on its way",
            ),
            _ => return Ok(()),
        };
        Err(format!(
            "the dashboard at {addr} could be read by every machine that reaches this address, {missing}: {advice}"
        ))
    }

    fn tls(&self) -> Option<TlsFiles> {
        let (certificates, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(TlsFiles { certificates, key })
    }

    fn password(&self) -> Outcome<Option<PasswordHash>> {
        let Some(file) = &self.password_file else { return Ok(None) };
        let password = ask_password("", Some(file))?;
        let mode = std::fs::metadata(file).map_err(shards::text::at(&file))?.permissions().mode();
        if mode & 0o007 != 0 {
            eprintln!(
                "pstorage: every user of this host can read the password (chmod 600 {})",
                file.display()
            );
        }
        Ok(Some(PasswordHash::of(password.as_bytes())))
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn dashboard(context: &Context, arguments: &Arguments) -> Outcome {
    // First of all, so that every thread inherits it.
    shards::host::block_termination_signals();
    arguments.check()?;
    let cluster = context.cluster()?;
    let link = || Ok::<_, String>(context.link()?.hasty());
    let mut watch = Watch::new(link()?);
    let addr = arguments.listen;
    let failed = |e: std::io::Error| {
        format!(
            "can't serve at {addr}: {}; name a free port of an address of this host",
            shards::text::cause(&e)
        )
    };
    let mut server = Server::bind(addr, LIMITS).map_err(failed)?;
    if let Some(files) = arguments.tls() {
        server = server.with_tls(&files).map_err(|e| e.to_string())?;
    }
    let refresh = Duration::from_millis(arguments.refresh_ms);
    let site = Arc::new(Site {
        guard: Guard::new(arguments.password()?),
        model: Mutex::new(Model::new(cluster, refresh, Moment::now())),
        explaining: Mutex::new(link()?),
    });
    let watching = site.clone();
    std::thread::spawn(move || {
        loop {
            let news = watch.look();
            watching.model().on_news(news, Moment::now());
            std::thread::sleep(refresh);
        }
    });
    let scheme = if arguments.tls_cert.is_some() { "https" } else { "http" };
    println!("The dashboard of cluster '{cluster}' is at {scheme}://{}/", server.addr().map_err(failed)?);
    server.open(Box::new(move |request| site.answer(request)));
    shards::host::wait_for_termination();
    Ok(())
}

struct Site {
    guard: Guard,
    model: Mutex<Model>,
    /// For questions that the model can't answer.
    explaining: Mutex<MdsLink>,
}

impl Site {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request) -> Answer {
        let answer = match self.guard.admit(request, Instant::now()) {
            Ok(()) => self.page(request),
            Err(refused) => refused,
        };
        HEADERS.into_iter().fold(answer, |answer, (name, value)| answer.with(name, value))
    }

    fn page(&self, request: &Request) -> Answer {
        if let Some((_, kind, bytes)) = FILES.iter().find(|(path, ..)| *path == request.path) {
            return Answer::new(200, kind, *bytes);
        }
        let number = |name| request.parameter(name).and_then(|n| n.parse::<u64>().ok());
        let value = match request.path.as_str() {
            "/api/status" => api::status(&self.model(), Moment::now()),
            "/api/samples" => api::samples(&self.model(), number("after").unwrap_or(0)),
            "/api/servers" => api::servers(&self.model(), &wish(request)),
            "/api/clients" => api::clients(&self.model()),
            "/api/events" => {
                let limit = number("limit").map_or(EVENTS, |n| n as usize);
                let least = match request.parameter("least") {
                    Some("err") => Severity::Err,
                    Some("warn") => Severity::Warn,
                    _ => Severity::Info,
                };
                api::events(&self.model(), limit, least)
            }
            "/api/explain" => match number("cs").and_then(|n| u32::try_from(n).ok()) {
                Some(cs) => return self.explain(CsId(cs)),
                None => return Answer::plain(400, "which chunk server? /api/explain?cs=N\n"),
            },
            _ => return Answer::plain(404, "there is nothing here\n"),
        };
        json(200, &value)
    }

    fn explain(&self, cs: CsId) -> Answer {
        // One at a time: nobody can keep the metadata server busy through this.
        let Ok(mut link) = self.explaining.try_lock() else {
            return Answer::plain(503, "another question is being answered\n");
        };
        // They may be others than at the start.
        let told: Vec<SocketAddr> =
            self.model().stat.iter().flat_map(|stat| &stat.mds).map(|m| m.addr).collect();
        let servers = mds_to_try(&told, link.known());
        link.know(servers);
        let story = explain::ask(&mut link, ExplainTarget::Cs(cs));
        // The next question may come in a week.
        link.hang_up();
        match story {
            Ok(story) => json(200, &serde_json::to_value(story).unwrap_or_default()),
            Err(why) => json(503, &serde_json::json!({ "error": why })),
        }
    }
}

fn json(status: u16, value: &Value) -> Answer {
    Answer::new(status, "application/json", value.to_string().into_bytes())
}

fn wish(request: &Request) -> Wish {
    let is = |name| request.parameter(name) == Some("1");
    let text = |name| request.parameter(name).map(unescaped).unwrap_or_default();
    Wish {
        open: place_ids(&text("open")).collect(),
        all: is("all"),
        unwell: is("unwell"),
        find: text("find"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn check(line: &str) -> Outcome {
        let line = Line::try_parse_from(["dashboard"].into_iter().chain(line.split_whitespace()));
        line.map_err(|e| e.to_string())?.arguments.check()
    }

    #[test]
    fn other_machines_need_a_password_that_nobody_hears() {
        let refused = |line: &str, parts: &[&str]| {
            let why = check(line).expect_err(line);
            parts.iter().for_each(|part| assert!(why.contains(part), "{line}: {why}"));
        };
        refused("--listen 0.0.0.0:9530", &["0.0.0.0:9530", "without a password", "--password-file"]);
        refused("--listen 192.0.2.1:80 --tls-cert c --tls-key k", &["without a password"]);
        refused("--listen [::]:80 --password-file p", &["--tls-cert", "--plain-http"]);
        refused("--tls-cert c", &["--tls-key"]);
        refused("--tls-cert c --tls-key k --plain-http", &["--plain-http"]);
        for right in [
            "",
            "--listen [::1]:80",
            "--password-file p",
            "--listen 0.0.0.0:9530 --password-file p --plain-http",
            "--listen 0.0.0.0:9530 --password-file p --tls-cert c --tls-key k",
        ] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
    }

    fn site(password: Option<&str>) -> Site {
        let (model, _) = model::tests::watched(3, 2);
        let nobody = MdsLink::new("pcs1", wire::auth::Credentials::Open, &[]).hasty();
        Site {
            guard: Guard::new(password.map(|p| PasswordHash::of(p.as_bytes()))),
            model: Mutex::new(model),
            explaining: Mutex::new(nobody),
        }
    }

    fn get(site: &Site, path: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:9530\r\n\r\n");
        site.answer(&Request::parse(head.as_bytes(), [127, 0, 0, 1].into()).unwrap())
    }

    #[test]
    fn everything_answers_and_nothing_without_the_password() {
        let paths = [
            ("/", 200),
            ("/app.js", 200),
            ("/style.css", 200),
            ("/api/status", 200),
            ("/api/samples?after=x", 200),
            ("/api/servers?all=1", 200),
            ("/api/clients", 200),
            ("/api/events?limit=1&least=warn", 200),
            ("/api/explain", 400),
            ("/api/explain?cs=1", 503),
            ("/api/../status", 404),
            ("/favicon.ico", 404),
        ];
        let (open, closed) = (site(None), site(Some("secret")));
        for (path, status) in paths {
            assert_eq!(get(&open, path).status, status, "{path}");
            assert_eq!(get(&closed, path).status, 401, "{path}");
        }
    }

    #[test]
    fn wishes_of_a_browser_are_read() {
        let head = b"GET /api/servers?open=0%3A17%2C2%3A5&unwell=1&find=a%20b HTTP/1.1\r\n\r\n";
        let asked = Request::parse(head, [127, 0, 0, 1].into()).unwrap();
        let open = [(0, CsId(17)), (2, CsId(5))].into();
        assert_eq!(wish(&asked), Wish { open, all: false, unwell: true, find: "a b".into() });
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let files =
            [include_str!("page/index.html"), include_str!("page/app.js"), include_str!("page/style.css")];
        for text in files {
            let text = text.replace("http://www.w3.org/", "");
            assert!(
                !text.contains("http:") && !text.contains("https:") && !text.contains("url(//"),
                "{text}"
            );
        }
        // What comes from the cluster is shown as text, never as HTML.
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!files[1].contains(way), "{way}");
        }
        assert!(!files[0].contains("style=") && !files[0].contains("onclick"), "the policy forbids these");
    }
}
