//! Scopes of a systemd manager, for those who name their units and properties themselves (OCI runtimes).
//!
//! Input: which manager, a unit, its properties. Output: the manager's answer, no more: it moves processes in a job after it answered, so what came of it is to be read
//! from the kernel. The types of the bus stay inside. Calls start threads: whoever clones must have done so before.

use std::path::Path;
use std::time::Duration;

use zbus::blocking::Connection;
use zbus::zvariant::Value;

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// For each answer. A manager that reloads answers late.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A call to systemd that failed.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// Nobody to ask.
    #[error("cannot reach the systemd {whose} manager at {address}; is systemd running, and dbus with it?")]
    Connect {
        /// `system` or `user`.
        whose: &'static str,
        /// The bus.
        address: String,
        /// Why.
        source: Box<zbus::Error>,
    },
    /// No session.
    #[error(
        "no address of the user's bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set; log in, or `loginctl enable-linger`"
    )]
    NoUserBus,
    /// The manager refused.
    #[error("systemd refuses {call} for {unit}")]
    Call {
        /// The method.
        call: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        source: Box<zbus::Error>,
    },
    /// The manager did not do what it said.
    #[error(
        "systemd did not put process {pid} into {unit} within {seconds} s; it is in {found}; see `journalctl -u {unit}`"
    )]
    NotPlaced {
        /// The unit.
        unit: String,
        /// The process.
        pid: i32,
        /// The cgroup that it is in.
        found: String,
        /// How long it was waited.
        seconds: u64,
    },
}

/// A systemd manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The machine's.
    System,
    /// That of the user whose session this is.
    User,
}

impl Manager {
    fn whose(self) -> &'static str {
        match self {
            Manager::System => "system",
            Manager::User => "user",
        }
    }

    fn address(self) -> Result<String, UnitError> {
        let variable = match self {
            Manager::System => "DBUS_SYSTEM_BUS_ADDRESS",
            Manager::User => "DBUS_SESSION_BUS_ADDRESS",
        };
        if let Ok(address) = std::env::var(variable) {
            return Ok(address);
        }
        match self {
            Manager::System => Ok("unix:path=/run/dbus/system_bus_socket".to_owned()),
            Manager::User => {
                let runtime = std::env::var_os("XDG_RUNTIME_DIR").ok_or(UnitError::NoUserBus)?;
                Ok(format!("unix:path={}", Path::new(&runtime).join("bus").display()))
            }
        }
    }
}

/// The value of a property, in the types that the properties of units have.
#[derive(Clone, Debug, PartialEq)]
pub enum Property {
    /// `s`
    Text(String),
    /// `b`
    Flag(bool),
    /// `i`
    Int32(i32),
    /// `u`
    Uint32(u32),
    /// `x`
    Int64(i64),
    /// `t`
    Uint64(u64),
    /// `d`
    Double(f64),
    /// `as`
    Texts(Vec<String>),
    /// `au`
    Uint32s(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(st)`
    Rates(Vec<(String, u64)>),
}

impl Property {
    fn value(&self) -> Value<'_> {
        match self {
            Property::Text(text) => Value::from(text.as_str()),
            Property::Flag(flag) => Value::from(*flag),
            Property::Int32(number) => Value::from(*number),
            Property::Uint32(number) => Value::from(*number),
            Property::Int64(number) => Value::from(*number),
            Property::Uint64(number) => Value::from(*number),
            Property::Double(number) => Value::from(*number),
            Property::Texts(texts) => Value::from(texts.clone()),
            Property::Uint32s(numbers) => Value::from(numbers.clone()),
            Property::Bytes(bytes) => Value::from(bytes.clone()),
            Property::Pairs(pairs) => Value::from(pairs.clone()),
            Property::Rates(rates) => Value::from(rates.clone()),
        }
    }
}

/// A connection to a manager.
#[derive(Debug)]
pub struct Units {
    bus: Connection,
}

impl Units {
    /// Reaches the manager over its bus.
    pub fn of(manager: Manager) -> Result<Units, UnitError> {
        let address = manager.address()?;
        let connect = |address: &str| -> zbus::Result<Connection> {
            zbus::blocking::connection::Builder::address(address)?.method_timeout(WAIT_MAX).build()
        };
        let bus = connect(&address).map_err(|source| UnitError::Connect {
            whose: manager.whose(),
            address,
            source: Box::new(source),
        })?;
        Ok(Units { bus })
    }

    fn call<B: zbus::export::serde::Serialize + zbus::zvariant::DynamicType>(
        &self,
        call: &'static str,
        unit: &str,
        body: &B,
    ) -> Result<(), UnitError> {
        self.bus
            .call_method(Some(MANAGER), MANAGER_PATH, Some(MANAGER_INTERFACE), call, body)
            .map(drop)
            .map_err(|source| UnitError::Call { call, unit: unit.to_owned(), source: Box::new(source) })
    }

    /// Starts a scope that must not be there yet. A failed one of the same name is no obstacle.
    pub fn start(&self, unit: &str, properties: &[(String, Property)]) -> Result<(), UnitError> {
        let properties: Vec<(&str, Value<'_>)> =
            properties.iter().map(|(name, property)| (name.as_str(), property.value())).collect();
        let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        // Fails when there is no such unit, which is the rule.
        let _ = self.reset_failed(unit);
        self.call("StartTransientUnit", unit, &(unit, "fail", properties, auxiliary))
    }

    /// Changes properties until the unit ends.
    pub fn set(&self, unit: &str, properties: &[(String, Property)]) -> Result<(), UnitError> {
        let properties: Vec<(&str, Value<'_>)> =
            properties.iter().map(|(name, property)| (name.as_str(), property.value())).collect();
        self.call("SetUnitProperties", unit, &(unit, true, properties))
    }

    /// Ends a unit.
    pub fn stop(&self, unit: &str) -> Result<(), UnitError> {
        self.call("StopUnit", unit, &(unit, "replace"))
    }

    /// Forgets that a unit failed.
    pub fn reset_failed(&self, unit: &str) -> Result<(), UnitError> {
        self.call("ResetFailedUnit", unit, &(unit,))
    }

    /// The cgroup that the manager itself stands in: its units are below. Empty for that of the machine.
    pub fn root(&self) -> Result<String, UnitError> {
        let body = (MANAGER_INTERFACE, "ControlGroup");
        let read = || -> zbus::Result<String> {
            let reply = self.bus.call_method(
                Some(MANAGER),
                MANAGER_PATH,
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &body,
            )?;
            let value: zbus::zvariant::OwnedValue = reply.body().deserialize()?;
            Ok(String::try_from(value)?)
        };
        read().map_err(|source| UnitError::Call {
            call: "Get(ControlGroup)",
            unit: "the manager".to_owned(),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_types_of_the_bus() {
        let check = |property: Property, signature: &str| {
            assert_eq!(property.value().value_signature().to_string(), signature, "{property:?}");
        };
        check(Property::Text("a".to_owned()), "s");
        check(Property::Flag(true), "b");
        check(Property::Uint64(1), "t");
        check(Property::Uint32s(vec![1]), "au");
        check(Property::Bytes(vec![1]), "ay");
        check(Property::Pairs(vec![("/dev/null".to_owned(), "rwm".to_owned())]), "a(ss)");
        check(Property::Rates(vec![("/dev/block/8:0".to_owned(), 1)]), "a(st)");
        check(Property::Texts(vec!["a.service".to_owned()]), "as");
    }
}
