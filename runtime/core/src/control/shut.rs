//! What a sandbox that runs is refused below its ceiling, one kind of call by itself. Input: words such as `connect=off`; output: [`Shut`]. Refused are new calls:
//! what is connected, bound or open goes on. That they are refused is the prober's doing, of
//! reported system calls the launcher's, which holds the listener of the filter.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which switches are off. Default: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shut {
    /// connect(2) to an internet address.
    pub connect: bool,
    /// bind(2) to an internet address.
    pub bind: bool,
    /// Datagrams to an internet address that their call names.
    pub sendmsg: bool,
    /// Opening and making device nodes, but for those of [`Shut::DEVICES_LEFT`].
    pub devices: bool,
    /// System calls that the policy carries out and reports.
    pub reported: bool,
}

impl Shut {
    /// Every switch off.
    pub const ALL: Shut = Shut { connect: true, bind: true, sendmsg: true, devices: true, reported: true };
    /// Names of the switches.
    pub const NAMES: [&'static str; 5] = ["connect", "bind", "sendmsg", "devices", "reported"];
    /// Device nodes that are never refused: without them hardly a program runs.
    pub const DEVICES_LEFT: &'static str = "null, zero, full, random, urandom, tty, ptmx, pts";

    /// This one, changed by words such as `connect=off`.
    ///
    /// # Errors
    /// What is not understood, with what is.
    pub fn changed(self, words: &[String]) -> Result<Shut, String> {
        let (mut shut, mut seen) = (self, Vec::new());
        for word in words {
            let (name, state) = word.split_once('=').ok_or(format!("`{word}` has no `=`; write connect=off"))?;
            let is_off = match state {
                "off" => true,
                "on" => false,
                other => return Err(format!("{other:?} is no state of a switch; there are on and off")),
            };
            let Some(switch) = shut.switch(name) else {
                return Err(format!("{name:?} is no switch; there are connect, bind, sendmsg, devices and reported"));
            };
            *switch = is_off;
            if seen.contains(&name) {
                return Err(format!("{name} is given twice"));
            }
            seen.push(name);
        }
        if seen.is_empty() {
            return Err("no switch is given; write connect=off".to_owned());
        }
        Ok(shut)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "connect" => &mut self.connect,
            "bind" => &mut self.bind,
            "sendmsg" => &mut self.sendmsg,
            "devices" => &mut self.devices,
            "reported" => &mut self.reported,
            _ => return None,
        })
    }

    /// What either refuses.
    #[must_use]
    pub fn and(self, other: Shut) -> Shut {
        Shut {
            connect: self.connect || other.connect,
            bind: self.bind || other.bind,
            sendmsg: self.sendmsg || other.sendmsg,
            devices: self.devices || other.devices,
            reported: self.reported || other.reported,
        }
    }

    /// The part that kernel probes refuse.
    #[must_use]
    pub fn of_probes(self) -> Shut {
        Shut { reported: false, ..self }
    }

    /// Whether this refuses all that `other` does.
    pub fn covers(self, other: Shut) -> bool {
        self.and(other) == self
    }

    /// The switches that are off, by name.
    pub fn names(mut self) -> Vec<&'static str> {
        Shut::NAMES.into_iter().filter(|name| self.switch(name).is_some_and(|is_off| *is_off)).collect()
    }
}

impl fmt::Display for Shut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        f.write_str(&if names.is_empty() { "every switch on".to_owned() } else { format!("{} off", names.join(", ")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_turn_the_switches_that_they_name() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let off = Shut { bind: true, ..Shut::default() };
        let turned = off.changed(&words(&["connect=off", "bind=on"])).expect("both are known");
        assert_eq!(turned, Shut { connect: true, ..Shut::default() });
        assert_eq!((turned.to_string(), Shut::default().to_string()), ("connect off".into(), "every switch on".into()));
        assert_eq!(Shut::ALL.names(), Shut::NAMES);
        for wrong in [&[][..], &["connect"], &["connect=no"], &["disk=off"], &["bind=on", "bind=off"]] {
            assert!(off.changed(&words(wrong)).is_err(), "{wrong:?}");
        }
    }
}
