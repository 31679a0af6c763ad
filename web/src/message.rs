//! A request as it came, and an answer as it goes out: bytes, no I/O.

use std::borrow::Cow;
use std::net::IpAddr;

const MOST_HEADERS: usize = 64;

/// Of a `GET` or `HEAD`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub peer: IpAddr,
    /// As it came: escapes (`%2f`) are left.
    pub path: String,
    /// Behind the `?`; empty without one.
    pub query: String,
    headers: Vec<(String, Vec<u8>)>,
    /// Of the answer, only the head is wanted.
    pub(crate) head_only: bool,
}

impl Request {
    /// `head` reaches to the empty line.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub fn parse(head: &[u8], peer: IpAddr) -> Result<Request, Answer> {
        let bad = || Answer::plain(400, "this is no request of HTTP/1\n");
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(_)) = parsed.parse(head) else { return Err(bad()) };
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(bad()) };
        if !["GET", "HEAD"].contains(&method) {
            let refused = Answer::plain(405, "only GET and HEAD are answered here\n");
            return Err(refused.with("Allow", "GET, HEAD"));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = parsed.headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.to_vec()));
        Ok(Request {
            peer,
            path: path.into(),
            query: query.into(),
            headers: headers.collect(),
            head_only: method == "HEAD",
        })
    }

    /// The header of this name, in lower case. `None` also where it came twice, or is no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(n, _)| n == name);
        let (Some((_, value)), None) = (all.next(), all.next()) else { return None };
        std::str::from_utf8(value).ok()
    }

    /// The value of `name=value` in the query, as it came.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: Cow<'static, [u8]>,
}

impl Answer {
    pub fn new(status: u16, kind: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Answer {
        Answer { status, headers: vec![("Content-Type", kind.into())], body: body.into() }
    }

    pub fn plain(status: u16, text: &'static str) -> Answer {
        Answer::new(status, "text/plain; charset=utf-8", text.as_bytes())
    }

    /// One header more. Its value must hold no end of line.
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn encode(&self, head_only: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            debug_assert!(!value.contains(['\r', '\n']), "{name}: {value}");
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n", self.body.len());
        let mut bytes = text.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn parse(head: &str) -> Result<Request, Answer> {
        Request::parse(head.as_bytes(), Ipv4Addr::LOCALHOST.into())
    }

    #[test]
    fn a_request_is_taken_apart() {
        let r = parse("GET /api/x?a=1&bc=2&b=%20 HTTP/1.1\r\nHost: here\r\nX: 1\r\nx: 2\r\n\r\n").unwrap();
        assert_eq!((r.path.as_str(), r.parameter("a"), r.parameter("b")), ("/api/x", Some("1"), Some("%20")));
        assert_eq!((r.header("host"), r.header("x"), r.header("none")), (Some("here"), None, None));
        assert!(!r.head_only && parse("HEAD / HTTP/1.0\n\n").unwrap().head_only);
    }

    #[test]
    fn what_is_no_request_of_ours_is_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
        for bad in
            ["\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "\0 / HTTP/1.1\r\n\r\n", many.as_str()]
        {
            assert_eq!(parse(bad).unwrap_err().status, 400, "{bad}");
        }
        let refused = parse("POST / HTTP/1.1\r\n\r\n").unwrap_err();
        assert!(String::from_utf8(refused.encode(false)).unwrap().contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn of_an_answer_to_head_the_length_is_told_and_nothing_sent() {
        let text = String::from_utf8(Answer::plain(200, "four").with("X", "y").encode(true)).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain"), "{text}");
        assert!(text.contains("\r\nX: y\r\n") && text.contains("\r\nContent-Length: 4\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }
}
