//! What the name of a question to a name server tells: whose it is, and how much of it looks like data instead of words. Input: a name; output: part
//! or count. Guesses for rules, which ask for many of them before they conclude.

/// Second labels below which names are registered, where the last label is that of a country.
const SHARED: [&str; 9] = ["ac", "co", "com", "edu", "gov", "ne", "net", "or", "org"];
/// Shortest label that can look like data: shorter ones are serial numbers and names of hosts.
const LABEL_BYTES_MIN: usize = 16;

/// The end of a name that one owner has registered: its last two labels, three below such as `co.uk`.
pub(super) fn parent(name: &str) -> &str {
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), Some(second)) = (dots.next(), dots.next()) else { return name };
    let is_shared = name.len() - last - 1 == 2 && SHARED.contains(&&name[second + 1..last]);
    if !is_shared {
        return &name[second + 1..];
    }
    dots.next().map_or(name, |third| &name[third + 1..])
}

/// How many letters in front of the parent stand in labels that look like data.
pub(super) fn data(name: &str) -> u64 {
    let own = &name[..name.len() - parent(name).len()];
    own.split('.').filter(|label| is_data(label)).map(|label| label.len() as u64).sum()
}

/// Words have vowels and keep their digits together; what an encoding makes has too few of the ones, or digits all over it.
fn is_data(label: &str) -> bool {
    if label.len() < LABEL_BYTES_MIN {
        return false;
    }
    let bytes = label.as_bytes();
    let count = |yes: fn(&u8) -> bool| bytes.iter().filter(|byte| yes(byte)).count();
    let letters = count(u8::is_ascii_alphabetic);
    let vowels = count(|byte| matches!(byte.to_ascii_lowercase(), b'a' | b'e' | b'i' | b'o' | b'u' | b'y'));
    let is_alnum = |pair: &&[u8]| pair.iter().all(u8::is_ascii_alphanumeric);
    let changes = bytes.windows(2).filter(is_alnum).filter(|pair| pair[0].is_ascii_digit() != pair[1].is_ascii_digit());
    // A byte that had to be escaped is no part of a word.
    label.contains('\\') || changes.count() >= 4 || vowels * 4 < letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_name() {
        for (name, expected) in [
            ("a.b.example.org", "example.org"),
            ("example.org", "example.org"),
            ("www.example.co.uk", "example.co.uk"),
            ("co.uk", "co.uk"),
            ("x.y.co.uk.", "uk."),
            ("localhost", "localhost"),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(parent(name), expected, "{name}");
        }
    }

    #[test]
    fn encoded_labels_look_like_data_and_words_do_not() {
        for name in [
            "3f0a9b1c7d5e2f8a4b6c8d0e1f2a3b4c.x.example.org",
            "mzxw6ytboi4dqojsgmzdgnzxgqytgmzr.example.org",
            "aGVsbG8gd29ybGQgMTIzNDU2Nzg5MA.example.org",
            "qwrtpsdfghjklzxcvbnmwrtpl.example.org",
            r"\000\255\013\200.example.org",
        ] {
            assert!(data(name) >= 16, "{name}");
        }
        for name in [
            "packages.example.org",
            "production-load-balancer-internal.example.com",
            "d111111abcdef8.cloudfront.net",
            "selector1._domainkey.example.org",
            "4.3.2.1.zen.spamhaus.org",
            "1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            "ec2-203-0-113-25.compute-1.amazonaws.com",
            "my-service-20240131.us-east-1.elb.amazonaws.com",
            "internationalization-service-v2.example.co.uk",
            "3f0a9b1c7d5e2f8a4b6c8d0e1f2a3b4c.org",
            "",
        ] {
            assert_eq!(data(name), 0, "{name}");
        }
    }
}
