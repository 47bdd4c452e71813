//! librdmacm's types, as far as they are used here. See [`super::verbs`] about layouts.

use std::ffi::{c_int, c_void};

use super::verbs::{Context, Qp};

/// `struct rdma_event_channel`.
#[repr(C)]
pub(crate) struct EventChannel {
    pub(crate) fd: c_int,
}

/// `struct rdma_addr`. The addresses are unions of which `sockaddr_storage` is the largest member.
#[repr(C)]
pub(crate) struct Addr {
    pub(crate) src: libc::sockaddr_storage,
    pub(crate) dst: libc::sockaddr_storage,
    /// `struct rdma_ib_addr`: two GIDs and a partition key.
    pub(crate) ib: [u64; 5],
}

/// `struct rdma_route`.
#[repr(C)]
pub(crate) struct Route {
    pub(crate) addr: Addr,
    pub(crate) path_rec: *mut c_void,
    pub(crate) num_paths: c_int,
}

/// The start of `struct rdma_cm_id`: one end of a connection, or a listener.
#[repr(C)]
pub(crate) struct Id {
    pub(crate) verbs: *mut Context,
    pub(crate) channel: *mut EventChannel,
    pub(crate) context: *mut c_void,
    pub(crate) qp: *mut Qp,
    pub(crate) route: Route,
    pub(crate) port_space: c_int,
    pub(crate) port_num: u8,
}

/// `RDMA_PS_TCP`: reliable connections.
pub(crate) const PS_TCP: c_int = 0x0106;

/// `RDMA_OPTION_ID`: the level of an identifier's options.
pub(crate) const OPTION_ID: c_int = 0;
/// `RDMA_OPTION_ID_AFONLY`: an int, whether all addresses of IPv6 are without those of IPv4.
pub(crate) const OPTION_AFONLY: c_int = 2;

/// `struct rdma_conn_param`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ConnParam {
    pub(crate) private_data: *const c_void,
    pub(crate) private_data_len: u8,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) flow_control: u8,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry_count: u8,
    pub(crate) srq: u8,
    pub(crate) qp_num: u32,
}

/// The start of `struct rdma_cm_event`; its union holds [`ConnParam`] for everything that happens to connections.
#[repr(C)]
pub(crate) struct Event {
    pub(crate) id: *mut Id,
    pub(crate) listen_id: *mut Id,
    pub(crate) event: c_int,
    pub(crate) status: c_int,
    pub(crate) conn: ConnParam,
}

/// `RDMA_CM_EVENT_*`.
pub(crate) mod event {
    use std::ffi::c_int;

    pub(crate) const ADDR_RESOLVED: c_int = 0;
    pub(crate) const ADDR_ERROR: c_int = 1;
    pub(crate) const ROUTE_RESOLVED: c_int = 2;
    pub(crate) const ROUTE_ERROR: c_int = 3;
    pub(crate) const CONNECT_REQUEST: c_int = 4;
    pub(crate) const CONNECT_ERROR: c_int = 6;
    pub(crate) const UNREACHABLE: c_int = 7;
    pub(crate) const REJECTED: c_int = 8;
    pub(crate) const ESTABLISHED: c_int = 9;
    pub(crate) const DISCONNECTED: c_int = 10;
    pub(crate) const DEVICE_REMOVAL: c_int = 11;
    pub(crate) const ADDR_CHANGE: c_int = 14;
}
