//! The C libraries: their types and their functions, found at run time.
//!
//! # Operation
//! [`Lib::get`] loads libibverbs and librdmacm once per process and keeps them for ever: their drivers have threads and
//! exit handlers of their own, which must not lose their code. Nothing of rdma-core is needed to build.
//!
//! Many verbs are inline functions in the C headers that go through the open device's table; those are methods in
//! [`crate::sys`], on the objects they belong to.
#![allow(unsafe_code, reason = "functions of C libraries")]

pub(crate) mod cm;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod layout_tests;
pub(crate) mod verbs;

use std::{
    ffi::{c_char, c_int, c_void},
    sync::OnceLock,
};

use libloading::Library;

use crate::Unavailable;

macro_rules! library {
    ($($(#[$doc:meta])* $lib:ident . $symbol:ident as $field:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions that are used. Each is what its C declaration says.
        pub(crate) struct Lib {
            $($(#[$doc])* pub(crate) $field: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Lib {
            fn find(verbs: &Library, cm: &Library) -> Result<Self, Unavailable> {
                let library = |name: &str| if name == "verbs" { verbs } else { cm };
                Ok(Self {
                    $($field: {
                        let name = concat!(stringify!($symbol), "\0");
                        // SAFETY: the type is the C declaration's, which has not changed since the library's version
                        // 1 interface, and the library is never unloaded, so the pointer stays good.
                        let found = unsafe {
                            library(stringify!($lib)).get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>(name.as_bytes())
                        };
                        *found.map_err(|e| Unavailable::Library(e.to_string()))?
                    },)*
                })
            }
        }
    };
}

library! {
    verbs.ibv_get_device_list as get_device_list: fn(*mut c_int) -> *mut *mut verbs::Device;
    verbs.ibv_free_device_list as free_device_list: fn(*mut *mut verbs::Device);
    verbs.ibv_open_device as open_device: fn(*mut verbs::Device) -> *mut verbs::Context;
    verbs.ibv_close_device as close_device: fn(*mut verbs::Context) -> c_int;
    verbs.ibv_query_device as query_device: fn(*mut verbs::Context, *mut verbs::DeviceAttr) -> c_int;
    verbs.ibv_query_port as query_port: fn(*mut verbs::Context, u8, *mut verbs::PortAttr) -> c_int;
    verbs.ibv_alloc_pd as alloc_pd: fn(*mut verbs::Context) -> *mut verbs::Pd;
    verbs.ibv_dealloc_pd as dealloc_pd: fn(*mut verbs::Pd) -> c_int;
    verbs.ibv_reg_mr as reg_mr: fn(*mut verbs::Pd, *mut c_void, usize, c_int) -> *mut verbs::Mr;
    verbs.ibv_dereg_mr as dereg_mr: fn(*mut verbs::Mr) -> c_int;
    verbs.ibv_create_comp_channel as create_comp_channel: fn(*mut verbs::Context) -> *mut verbs::CompChannel;
    verbs.ibv_destroy_comp_channel as destroy_comp_channel: fn(*mut verbs::CompChannel) -> c_int;
    verbs.ibv_create_cq as create_cq:
        fn(*mut verbs::Context, c_int, *mut c_void, *mut verbs::CompChannel, c_int) -> *mut verbs::Cq;
    verbs.ibv_destroy_cq as destroy_cq: fn(*mut verbs::Cq) -> c_int;
    verbs.ibv_destroy_qp as destroy_qp: fn(*mut verbs::Qp) -> c_int;
    verbs.ibv_get_cq_event as get_cq_event:
        fn(*mut verbs::CompChannel, *mut *mut verbs::Cq, *mut *mut c_void) -> c_int;
    verbs.ibv_ack_cq_events as ack_cq_events: fn(*mut verbs::Cq, u32);
    verbs.ibv_get_async_event as get_async_event: fn(*mut verbs::Context, *mut verbs::AsyncEvent) -> c_int;
    verbs.ibv_ack_async_event as ack_async_event: fn(*mut verbs::AsyncEvent);
    verbs.ibv_wc_status_str as wc_status_str: fn(c_int) -> *const c_char;
    cm.rdma_create_event_channel as create_event_channel: fn() -> *mut cm::EventChannel;
    cm.rdma_destroy_event_channel as destroy_event_channel: fn(*mut cm::EventChannel);
    cm.rdma_create_id as create_id: fn(*mut cm::EventChannel, *mut *mut cm::Id, *mut c_void, c_int) -> c_int;
    cm.rdma_destroy_id as destroy_id: fn(*mut cm::Id) -> c_int;
    cm.rdma_set_option as set_option: fn(*mut cm::Id, c_int, c_int, *mut c_void, usize) -> c_int;
    cm.rdma_bind_addr as bind_addr: fn(*mut cm::Id, *mut libc::sockaddr) -> c_int;
    cm.rdma_listen as listen: fn(*mut cm::Id, c_int) -> c_int;
    cm.rdma_resolve_addr as resolve_addr: fn(*mut cm::Id, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
    cm.rdma_resolve_route as resolve_route: fn(*mut cm::Id, c_int) -> c_int;
    cm.rdma_create_qp as create_qp: fn(*mut cm::Id, *mut verbs::Pd, *mut verbs::QpInitAttr) -> c_int;
    cm.rdma_connect as connect: fn(*mut cm::Id, *mut cm::ConnParam) -> c_int;
    cm.rdma_accept as accept: fn(*mut cm::Id, *mut cm::ConnParam) -> c_int;
    cm.rdma_reject as reject: fn(*mut cm::Id, *const c_void, u8) -> c_int;
    cm.rdma_disconnect as disconnect: fn(*mut cm::Id) -> c_int;
    cm.rdma_migrate_id as migrate_id: fn(*mut cm::Id, *mut cm::EventChannel) -> c_int;
    cm.rdma_get_cm_event as get_cm_event: fn(*mut cm::EventChannel, *mut *mut cm::Event) -> c_int;
    cm.rdma_ack_cm_event as ack_cm_event: fn(*mut cm::Event) -> c_int;
}

impl Lib {
    /// The libraries, loaded at the first call.
    ///
    /// # Errors
    /// If one of them is missing, or is not what its name says. Always the same answer.
    pub(crate) fn get() -> Result<&'static Self, Unavailable> {
        static LIB: OnceLock<Result<Lib, Unavailable>> = OnceLock::new();
        LIB.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, Unavailable> {
        let open = |name: &str| {
            // SAFETY: the libraries' initialisers only set up their own state, and have no requirements on the process.
            unsafe { Library::new(name) }.map_err(|e| Unavailable::Library(e.to_string()))
        };
        let (verbs, cm) = (open("libibverbs.so.1")?, open("librdmacm.so.1")?);
        let lib = Self::find(&verbs, &cm)?;
        // For the life of the process; see the module's head.
        std::mem::forget((verbs, cm));
        Ok(lib)
    }
}
