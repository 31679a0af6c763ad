//! Who may read: those who came to this host's own address, or know the password.

use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use web::{Answer, Request};

/// Wrong passwords that one address has in [`TRIES_WITHIN`].
const MOST_TRIES: usize = 5;
const TRIES_WITHIN: Duration = Duration::from_secs(60);
/// Addresses whose tries are remembered. While there are so many, others must wait.
const MOST_ADDRESSES: usize = 10_000;

/// Passwords are compared by this, so that the time it takes tells neither letters nor length.
#[derive(Clone, Copy)]
pub struct PasswordHash([u8; 32]);

impl PasswordHash {
    pub fn of(password: &[u8]) -> PasswordHash {
        PasswordHash(Sha256::digest(password).into())
    }

    fn is(&self, other: &PasswordHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

pub struct Guard {
    password: Option<PasswordHash>,
    /// Times of wrong passwords.
    tries: Mutex<HashMap<IpAddr, Vec<Instant>>>,
}

impl Guard {
    pub fn new(password: Option<PasswordHash>) -> Guard {
        Guard { password, tries: Mutex::default() }
    }

    /// # Errors
    /// What is to be answered instead.
    pub fn admit(&self, request: &Request, now: Instant) -> Result<(), Answer> {
        match self.password {
            Some(password) => self.ask_password(password, request, now),
            // A page of somebody else, whose name was made to lead here, names itself. With a password it would not know that.
            None if request.header("host").is_some_and(is_this_host) => Ok(()),
            None => Err(Answer::plain(
                421,
                "without a password the dashboard is called localhost, 127.0.0.1 or [::1]\n",
            )),
        }
    }

    fn ask_password(&self, right: PasswordHash, request: &Request, now: Instant) -> Result<(), Answer> {
        let who = || {
            let refused =
                Answer::plain(401, "the dashboard's password, please (the user's name does not matter)\n");
            refused.with("WWW-Authenticate", "Basic realm=\"pstorage dashboard\", charset=\"UTF-8\"")
        };
        let Some(given) = request.header("authorization") else { return Err(who()) };
        // Held while the password is looked at: tries at the same time are counted, too.
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let house = house_of(request.peer);
        tries.retain(|_, times| {
            times.retain(|at| now.saturating_duration_since(*at) < TRIES_WITHIN);
            !times.is_empty()
        });
        let full = tries.len() >= MOST_ADDRESSES && !tries.contains_key(&house);
        if full || tries.get(&house).is_some_and(|times| times.len() >= MOST_TRIES) {
            let wait = Answer::plain(429, "too many wrong passwords: wait a minute\n");
            return Err(wait.with("Retry-After", TRIES_WITHIN.as_secs().to_string()));
        }
        if password_in(given).is_some_and(|password| PasswordHash::of(&password).is(&right)) {
            return Ok(());
        }
        tries.entry(house).or_default().push(now);
        Err(who())
    }
}

/// Of `Basic BASE64(NAME:PASSWORD)`.
fn password_in(authorization: &str) -> Option<Vec<u8>> {
    let (scheme, coded) = authorization.split_once(' ')?;
    let both = Base64::decode_vec(coded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let colon = both.iter().position(|b| *b == b':')?;
    Some(both[colon + 1..].to_vec())
}

/// Addresses that one host can take at will count as one.
fn house_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64)).into(),
    }
}

/// The name in a `Host` header, with any port: one of a tunnel may stand there.
fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let ip =
        name.parse::<Ipv4Addr>().map(IpAddr::from).or_else(|_| name.parse::<Ipv6Addr>().map(IpAddr::from));
    ip.map_or(name.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(peer: &str, headers: &[String]) -> Request {
        let head = format!("GET / HTTP/1.1\r\n{}\r\n", headers.concat());
        Request::parse(head.as_bytes(), peer.parse().unwrap()).unwrap()
    }

    fn with_password(peer: &str, password: &str) -> Request {
        let coded = Base64::encode_string(format!("admin:{password}").as_bytes());
        request(peer, &[format!("Authorization: Basic {coded}\r\n")])
    }

    fn status(admitted: Result<(), Answer>) -> u16 {
        admitted.map_or_else(|refused| refused.status, |()| 200)
    }

    #[test]
    fn names_that_lead_here_from_elsewhere_are_refused() {
        let guard = Guard::new(None);
        for (host, answer) in [
            ("localhost", 200),
            ("LOCALHOST:9530", 200),
            ("127.0.0.1:80", 200),
            ("127.1.2.3", 200),
            ("[::1]:9530", 200),
            ("evil.example:9530", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("192.0.2.1", 421),
            ("[::1", 200),
            ("", 421),
        ] {
            let asked = request("127.0.0.1", &[format!("Host: {host}\r\n")]);
            assert_eq!(status(guard.admit(&asked, Instant::now())), answer, "{host}");
        }
        assert_eq!(status(guard.admit(&request("127.0.0.1", &[]), Instant::now())), 421);
    }

    #[test]
    fn the_password_is_asked_and_can_not_be_guessed_for_long() {
        let guard = Guard::new(Some(PasswordHash::of(b"se:cret")));
        let now = Instant::now();
        let say = |peer: &str, password: &str, at| status(guard.admit(&with_password(peer, password), at));
        assert_eq!(status(guard.admit(&request("192.0.2.1", &[]), now)), 401);
        assert_eq!(say("192.0.2.1", "se:cret", now), 200);
        assert_eq!(
            (0..6).map(|_| say("192.0.2.1", "guess", now)).collect::<Vec<_>>(),
            [401, 401, 401, 401, 401, 429]
        );
        assert_eq!(say("192.0.2.1", "se:cret", now), 429, "nobody is told which one was right");
        assert_eq!(say("192.0.2.2", "se:cret", now), 200, "others go on");
        assert_eq!(say("192.0.2.1", "se:cret", now + TRIES_WITHIN), 200);
        (0..5).for_each(|n| assert_eq!(say(&format!("2001:db8::{n}"), "guess", now), 401));
        assert_eq!(say("2001:db8::9", "se:cret", now), 429, "one network is one house");
        for bad in ["Basic", "Basic !", "Basic c2VjcmV0", "Bearer eDpzZTpjcmV0"] {
            let asked = request("192.0.2.3", &[format!("Authorization: {bad}\r\n")]);
            assert_eq!(status(guard.admit(&asked, now)), 401, "{bad}");
        }
    }
}
