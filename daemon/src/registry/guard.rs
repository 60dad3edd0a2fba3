//! Who may ask at all. A registry on localhost is within reach of every web page the machine's user opens; a browser
//! gives itself away by the name it thinks it talks to (`Host`, after DNS rebinding) or by `Origin` and `Sec-Fetch-Site`.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap, StatusCode, Uri,
    header::{HOST, HeaderName, ORIGIN},
};

use super::{
    error::{Code, Failure},
    name::split_port,
};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names this registry answers to.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<String>,
}

impl Guard {
    /// `hosts` are names beyond localhost and the address of the connection.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self { hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect() }
    }

    /// Checks a request that came in on a connection whose own end is `local`.
    ///
    /// # Errors
    /// 403 for browsers, 421 for a name that is not ours, 400 without exactly one `Host`.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap, local: SocketAddr) -> Result<(), Failure> {
        let from_site = headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "none");
        if from_site || headers.contains_key(ORIGIN) {
            return Err(Failure::new(StatusCode::FORBIDDEN, Code::Denied, "requests from web pages are refused"));
        }
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Failure::bad_request(Code::Denied, "exactly one Host header is needed"));
        };
        let named = host.to_str().is_ok_and(|host| self.allows(host, local));
        let absolute = uri.authority().is_none_or(|authority| self.allows(authority.as_str(), local));
        if named && absolute {
            return Ok(());
        }
        let message = "this registry does not answer to that host name (registry_hosts adds names)";
        Err(Failure::new(StatusCode::MISDIRECTED_REQUEST, Code::Denied, message))
    }

    /// The port is not compared: it is another one behind a forward, and a rebinding page cannot hide its name.
    fn allows(&self, authority: &str, local: SocketAddr) -> bool {
        let Some((host, _)) = split_port(authority) else { return false };
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = literal.parse::<IpAddr>() {
            let loopback = address.is_loopback() && matches!(host, "127.0.0.1" | "[::1]");
            return loopback
                || address.to_canonical() == local.ip().to_canonical()
                || self.hosts.iter().any(|allowed| allowed == host || allowed == literal);
        }
        host.eq_ignore_ascii_case("localhost") || self.hosts.contains(&host.to_ascii_lowercase())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn status(local: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let guard = Guard::new(&[String::from("Mirror.Example"), String::from("192.0.2.7")]);
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        match guard.check(&uri.parse().unwrap(), &headers, local.parse().unwrap()) {
            Ok(()) => 200,
            Err(failure) => failure.status.as_u16(),
        }
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let local = "10.0.0.5:5050";
        for (host, expected) in [
            ("localhost", 200),
            ("LocalHost:5050", 200),
            ("127.0.0.1", 200),
            ("127.0.0.1:1", 200),
            ("[::1]:5050", 200),
            ("10.0.0.5:5050", 200),
            ("mirror.example", 200),
            ("MIRROR.EXAMPLE:5050", 200),
            ("192.0.2.7", 200),
            ("10.0.0.6:5050", 421),
            ("127.0.0.2", 421),
            ("evil.example:5050", 421),
            ("localhost.evil.example", 421),
            ("localhost.", 421),
            ("localhost@evil.example", 421),
            ("localhost:x", 421),
            ("", 421),
            ("[::1", 421),
        ] {
            assert_eq!(status(local, "/v2/", &[("host", host)]), expected, "{host}");
        }
        assert_eq!(status("[::ffff:10.0.0.5]:5050", "/v2/", &[("host", "10.0.0.5")]), 200);
        assert_eq!(status("127.0.0.2:5050", "/v2/", &[("host", "127.0.0.2")]), 200);
    }

    #[test]
    fn a_request_needs_exactly_one_host_and_an_absolute_target_must_be_ours_too() {
        let local = "127.0.0.1:5050";
        assert_eq!(status(local, "/v2/", &[]), 400);
        assert_eq!(status(local, "/v2/", &[("host", "localhost"), ("host", "localhost")]), 400);
        assert_eq!(status(local, "http://localhost/v2/", &[("host", "localhost")]), 200);
        assert_eq!(status(local, "http://evil.example/v2/", &[("host", "localhost")]), 421);
        assert_eq!(status(local, "http://user@localhost/v2/", &[("host", "localhost")]), 421);
    }

    #[test]
    fn browsers_are_refused() {
        let local = "127.0.0.1:5050";
        for (name, value, expected) in [
            ("origin", "http://evil.example", 403),
            ("origin", "null", 403),
            ("origin", "http://localhost:5050", 403),
            ("sec-fetch-site", "cross-site", 403),
            ("sec-fetch-site", "same-origin", 403),
            ("sec-fetch-site", "none", 200),
        ] {
            assert_eq!(status(local, "/v2/", &[("host", "localhost"), (name, value)]), expected, "{name}: {value}");
        }
    }
}
