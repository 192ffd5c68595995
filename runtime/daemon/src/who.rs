//! Names of users and their groups, from the files of this host.
//!
//! Not through the C library, which in a static program loads modules of another build; users of a directory service are known by their number only.

use std::fs;

/// A user as the files know it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: Option<String>,
    pub home: Option<String>,
    pub groups: Vec<String>,
}

/// Looks a user up.
pub fn look_up(uid: u32, gid: u32) -> User {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    find(uid, gid, &read("/etc/passwd"), &read("/etc/group"))
}

/// The user and group id of a user.
pub fn named(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.first() == Some(&name))?;
    Some((entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?))
}

fn find(uid: u32, gid: u32, passwd: &str, group: &str) -> User {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let entry = passwd.lines().map(fields).find(|fields| fields.get(2) == Some(&uid.to_string()));
    let name = entry.as_ref().and_then(|fields| fields.first().cloned());
    let home = entry.as_ref().and_then(|fields| fields.get(5).cloned());
    let is_member = |fields: &Vec<String>| {
        let is_named = |list: &String| name.as_ref().is_some_and(|name| list.split(',').any(|member| member == name));
        fields.get(2) == Some(&gid.to_string()) || fields.get(3).is_some_and(is_named)
    };
    let groups = group.lines().map(fields).filter(is_member).filter_map(|fields| fields.first().cloned()).collect();
    User { name, home, groups }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_first_one_and_those_that_name_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
        let group = "root:x:0:\nusers:x:100:\napex:x:200:bob,ann\nother:x:300:annabel\n";
        let user = find(1000, 100, passwd, group);
        assert_eq!(user.name.as_deref(), Some("ann"));
        assert_eq!(user.home.as_deref(), Some("/home/ann"));
        assert_eq!(user.groups, ["users", "apex"]);
        assert_eq!(find(7, 7, passwd, group), User::default());
    }
}
