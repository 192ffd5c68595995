//! Techniques of MITRE ATT&CK by id: name and tactic of those that happen on Linux and that rules name.
//!
//! Source: attack.mitre.org, Enterprise, version 17. A technique with several tactics stands with the one that a sandbox is most likely to
//! show. An id that is not here is passed on without names; what is no id is left out (it stays in `unmapped`).

use super::shape::{Attack, Named};

/// Version of ATT&CK that the names are from.
const VERSION: &str = "17";

struct Tactic {
    id: &'static str,
    name: &'static str,
}

const EXECUTION: Tactic = Tactic { id: "TA0002", name: "Execution" };
const PERSISTENCE: Tactic = Tactic { id: "TA0003", name: "Persistence" };
const PRIVILEGE: Tactic = Tactic { id: "TA0004", name: "Privilege Escalation" };
const EVASION: Tactic = Tactic { id: "TA0005", name: "Defense Evasion" };
const CREDENTIALS: Tactic = Tactic { id: "TA0006", name: "Credential Access" };
const DISCOVERY: Tactic = Tactic { id: "TA0007", name: "Discovery" };
const LATERAL: Tactic = Tactic { id: "TA0008", name: "Lateral Movement" };
const COLLECTION: Tactic = Tactic { id: "TA0009", name: "Collection" };
const EXFILTRATION: Tactic = Tactic { id: "TA0010", name: "Exfiltration" };
const COMMAND: Tactic = Tactic { id: "TA0011", name: "Command and Control" };
const IMPACT: Tactic = Tactic { id: "TA0040", name: "Impact" };

/// Id, name, tactic; in the order of ids.
#[rustfmt::skip]
const TECHNIQUES: &[(&str, &str, Tactic)] = &[
    ("T1003", "OS Credential Dumping", CREDENTIALS),
    ("T1003.007", "Proc Filesystem", CREDENTIALS),
    ("T1003.008", "/etc/passwd and /etc/shadow", CREDENTIALS),
    ("T1005", "Data from Local System", COLLECTION),
    ("T1014", "Rootkit", EVASION),
    ("T1016", "System Network Configuration Discovery", DISCOVERY),
    ("T1018", "Remote System Discovery", DISCOVERY),
    ("T1021", "Remote Services", LATERAL),
    ("T1021.004", "SSH", LATERAL),
    ("T1027", "Obfuscated Files or Information", EVASION),
    ("T1036", "Masquerading", EVASION),
    ("T1037", "Boot or Logon Initialization Scripts", PERSISTENCE),
    ("T1037.004", "RC Scripts", PERSISTENCE),
    ("T1040", "Network Sniffing", CREDENTIALS),
    ("T1041", "Exfiltration Over C2 Channel", EXFILTRATION),
    ("T1046", "Network Service Discovery", DISCOVERY),
    ("T1048", "Exfiltration Over Alternative Protocol", EXFILTRATION),
    ("T1053", "Scheduled Task/Job", PERSISTENCE),
    ("T1053.003", "Cron", PERSISTENCE),
    ("T1053.006", "Systemd Timers", PERSISTENCE),
    ("T1055", "Process Injection", EVASION),
    ("T1055.008", "Ptrace System Calls", EVASION),
    ("T1055.009", "Proc Memory", EVASION),
    ("T1057", "Process Discovery", DISCOVERY),
    ("T1059", "Command and Scripting Interpreter", EXECUTION),
    ("T1059.004", "Unix Shell", EXECUTION),
    ("T1059.006", "Python", EXECUTION),
    ("T1068", "Exploitation for Privilege Escalation", PRIVILEGE),
    ("T1070", "Indicator Removal", EVASION),
    ("T1070.002", "Clear Linux or Mac System Logs", EVASION),
    ("T1070.003", "Clear Command History", EVASION),
    ("T1070.004", "File Deletion", EVASION),
    ("T1070.006", "Timestomp", EVASION),
    ("T1071", "Application Layer Protocol", COMMAND),
    ("T1071.001", "Web Protocols", COMMAND),
    ("T1071.004", "DNS", COMMAND),
    ("T1082", "System Information Discovery", DISCOVERY),
    ("T1083", "File and Directory Discovery", DISCOVERY),
    ("T1087", "Account Discovery", DISCOVERY),
    ("T1090", "Proxy", COMMAND),
    ("T1095", "Non-Application Layer Protocol", COMMAND),
    ("T1098", "Account Manipulation", PERSISTENCE),
    ("T1098.004", "SSH Authorized Keys", PERSISTENCE),
    ("T1105", "Ingress Tool Transfer", COMMAND),
    ("T1106", "Native API", EXECUTION),
    ("T1110", "Brute Force", CREDENTIALS),
    ("T1129", "Shared Modules", EXECUTION),
    ("T1132", "Data Encoding", COMMAND),
    ("T1140", "Deobfuscate/Decode Files or Information", EVASION),
    ("T1204", "User Execution", EXECUTION),
    ("T1222", "File and Directory Permissions Modification", EVASION),
    ("T1222.002", "Linux and Mac File and Directory Permissions Modification", EVASION),
    ("T1485", "Data Destruction", IMPACT),
    ("T1486", "Data Encrypted for Impact", IMPACT),
    ("T1489", "Service Stop", IMPACT),
    ("T1490", "Inhibit System Recovery", IMPACT),
    ("T1496", "Resource Hijacking", IMPACT),
    ("T1496.001", "Compute Hijacking", IMPACT),
    ("T1498", "Network Denial of Service", IMPACT),
    ("T1499", "Endpoint Denial of Service", IMPACT),
    ("T1499.001", "OS Exhaustion Flood", IMPACT),
    ("T1505", "Server Software Component", PERSISTENCE),
    ("T1505.003", "Web Shell", PERSISTENCE),
    ("T1518", "Software Discovery", DISCOVERY),
    ("T1542", "Pre-OS Boot", PERSISTENCE),
    ("T1543", "Create or Modify System Process", PERSISTENCE),
    ("T1543.002", "Systemd Service", PERSISTENCE),
    ("T1546", "Event Triggered Execution", PERSISTENCE),
    ("T1546.004", "Unix Shell Configuration Modification", PERSISTENCE),
    ("T1547", "Boot or Logon Autostart Execution", PERSISTENCE),
    ("T1547.006", "Kernel Modules and Extensions", PERSISTENCE),
    ("T1547.013", "XDG Autostart Entries", PERSISTENCE),
    ("T1548", "Abuse Elevation Control Mechanism", PRIVILEGE),
    ("T1548.001", "Setuid and Setgid", PRIVILEGE),
    ("T1548.003", "Sudo and Sudo Caching", PRIVILEGE),
    ("T1552", "Unsecured Credentials", CREDENTIALS),
    ("T1552.001", "Credentials In Files", CREDENTIALS),
    ("T1552.003", "Bash History", CREDENTIALS),
    ("T1552.004", "Private Keys", CREDENTIALS),
    ("T1552.005", "Cloud Instance Metadata API", CREDENTIALS),
    ("T1555", "Credentials from Password Stores", CREDENTIALS),
    ("T1555.003", "Credentials from Web Browsers", CREDENTIALS),
    ("T1556", "Modify Authentication Process", CREDENTIALS),
    ("T1556.003", "Pluggable Authentication Modules", CREDENTIALS),
    ("T1560", "Archive Collected Data", COLLECTION),
    ("T1561", "Disk Wipe", IMPACT),
    ("T1562", "Impair Defenses", EVASION),
    ("T1562.001", "Disable or Modify Tools", EVASION),
    ("T1562.003", "Impair Command History Logging", EVASION),
    ("T1562.004", "Disable or Modify System Firewall", EVASION),
    ("T1562.012", "Disable or Modify Linux Audit System", EVASION),
    ("T1564", "Hide Artifacts", EVASION),
    ("T1564.001", "Hidden Files and Directories", EVASION),
    ("T1567", "Exfiltration Over Web Service", EXFILTRATION),
    ("T1571", "Non-Standard Port", COMMAND),
    ("T1572", "Protocol Tunneling", COMMAND),
    ("T1573", "Encrypted Channel", COMMAND),
    ("T1574", "Hijack Execution Flow", PERSISTENCE),
    ("T1574.006", "Dynamic Linker Hijacking", PERSISTENCE),
    ("T1574.007", "Path Interception by PATH Environment Variable", PERSISTENCE),
    ("T1601", "Modify System Image", EVASION),
    ("T1609", "Container Administration Command", EXECUTION),
    ("T1611", "Escape to Host", PRIVILEGE),
    ("T1612", "Build Image on Host", EVASION),
    ("T1613", "Container and Resource Discovery", DISCOVERY),
    ("T1614", "System Location Discovery", DISCOVERY),
    ("T1620", "Reflective Code Loading", EVASION),
    ("T1622", "Debugger Evasion", EVASION),
];

/// The technique with this id, such as `T1059.004`; `None` for what is no such id.
pub fn attack(id: &str) -> Option<Attack> {
    let (parent, sub) = match id.split_once('.') {
        Some((parent, sub)) if is_digits(sub, 3) => (parent, Some(id)),
        Some(_) => return None,
        None => (id, None),
    };
    if !parent.strip_prefix('T').is_some_and(|number| is_digits(number, 4)) {
        return None;
    }
    let row = known(id).or_else(|| known(parent));
    Some(Attack {
        version: VERSION,
        tactic: row.map(|(_, _, tactic)| Named {
            uid: tactic.id.to_owned(),
            name: Some(tactic.name),
            src_url: format!("https://attack.mitre.org/tactics/{}", tactic.id),
        }),
        technique: named(parent),
        sub_technique: sub.map(named),
    })
}

fn known(id: &str) -> Option<&'static (&'static str, &'static str, Tactic)> {
    TECHNIQUES.binary_search_by(|(known, _, _)| (*known).cmp(id)).ok().map(|index| &TECHNIQUES[index])
}

fn named(id: &str) -> Named {
    Named {
        uid: id.to_owned(),
        name: known(id).map(|(_, name, _)| *name),
        src_url: format!("https://attack.mitre.org/techniques/{}", id.replace('.', "/")),
    }
}

fn is_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_sub_technique_has_its_parent() {
        assert!(TECHNIQUES.is_sorted_by(|(a, _, _), (b, _, _)| a < b));
        for (id, _, _) in TECHNIQUES {
            let parent = id.split('.').next().expect("split yields one");
            assert!(known(parent).is_some(), "{id}");
        }
    }

    #[test]
    fn a_sub_technique_comes_with_its_technique_and_tactic() {
        let shell = attack("T1059.004").expect("an id");
        assert_eq!(shell.technique.name, Some("Command and Scripting Interpreter"));
        let sub = shell.sub_technique.expect("given");
        assert_eq!(
            (sub.name, sub.src_url.as_str()),
            (Some("Unix Shell"), "https://attack.mitre.org/techniques/T1059/004")
        );
        assert_eq!(shell.tactic.map(|tactic| tactic.uid).as_deref(), Some("TA0002"));
    }

    #[test]
    fn unknown_ids_pass_and_other_words_do_not() {
        let unknown = attack("T9999").expect("an id");
        assert_eq!((unknown.technique.name, unknown.tactic), (None, None));
        assert_eq!(
            attack("T1059.999").and_then(|known| known.tactic).and_then(|tactic| tactic.name),
            Some("Execution")
        );
        for word in ["", "T", "T105", "T10599", "1059", "TA0002", "T1059.4", "T1059.0044", "T105x", "T1059."] {
            assert_eq!(attack(word), None, "{word}");
        }
    }
}
