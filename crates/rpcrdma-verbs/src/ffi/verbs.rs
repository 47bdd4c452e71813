//! libibverbs' types, as far as they are used here.
//!
//! # Layout
//! These are the C structures of `infiniband/verbs.h`, which are a stable binary interface: rdma-core adds fields only at
//! the end, or in structures that carry their own size. A structure that is only ever reached through a pointer from the
//! library may stop after the last field that is looked at; it is never made or copied here. The layout tests compile a C
//! program against the installed headers and compare every offset.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `struct ibv_device`: an entry of the device list.
#[repr(C)]
pub(crate) struct Device {
    /// Two functions that are not called.
    pub(crate) ops: [*mut c_void; 2],
    /// `enum ibv_node_type`.
    pub(crate) node_type: c_int,
    /// `enum ibv_transport_type`.
    pub(crate) transport_type: c_int,
    /// The kernel's name, ending in NUL.
    pub(crate) name: [c_char; 64],
}

/// `IBV_TRANSPORT_IB`: InfiniBand, RoCE and their software forms.
pub(crate) const TRANSPORT_IB: c_int = 0;
/// `IBV_TRANSPORT_IWARP`.
pub(crate) const TRANSPORT_IWARP: c_int = 1;

/// The start of `struct ibv_context`: an open device, with the functions of its driver.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) device: *mut Device,
    pub(crate) ops: ContextOps,
    pub(crate) cmd_fd: c_int,
    /// Where the device's events come.
    pub(crate) async_fd: c_int,
}

/// `struct ibv_context_ops`. What the headers make inline functions of goes through here; the rest are placeholders of
/// older interfaces.
#[repr(C)]
pub(crate) struct ContextOps {
    pub(crate) compat_before_windows: [*mut c_void; 7],
    pub(crate) alloc_mw: Option<unsafe extern "C" fn(*mut Pd, c_int) -> *mut Mw>,
    pub(crate) bind_mw: *mut c_void,
    pub(crate) dealloc_mw: Option<unsafe extern "C" fn(*mut Mw) -> c_int>,
    pub(crate) compat_create_cq: *mut c_void,
    pub(crate) poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub(crate) req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    pub(crate) compat_after_notify: [*mut c_void; 7],
    pub(crate) post_srq_recv: *mut c_void,
    pub(crate) compat_before_post: [*mut c_void; 4],
    pub(crate) post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub(crate) post_recv: Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    pub(crate) compat_after_post: [*mut c_void; 5],
}

/// `struct ibv_async_event`: something has happened to a device or to what was made of it.
#[repr(C)]
pub(crate) struct AsyncEvent {
    /// A union: the address of what it is about, or the number of a port, a C int.
    pub(crate) element: usize,
    pub(crate) event_type: c_int,
}

/// `IBV_EVENT_*`, those that end connections.
pub(crate) mod async_event {
    use std::ffi::c_int;

    pub(crate) const CQ_ERR: c_int = 0;
    pub(crate) const QP_FATAL: c_int = 1;
    pub(crate) const QP_REQ_ERR: c_int = 2;
    pub(crate) const QP_ACCESS_ERR: c_int = 3;
    pub(crate) const DEVICE_FATAL: c_int = 8;
    pub(crate) const PORT_ERR: c_int = 10;
}

/// `struct ibv_device_attr`.
#[repr(C)]
pub(crate) struct DeviceAttr {
    pub(crate) fw_ver: [c_char; 64],
    pub(crate) node_guid: u64,
    pub(crate) sys_image_guid: u64,
    pub(crate) max_mr_size: u64,
    pub(crate) page_size_cap: u64,
    pub(crate) vendor_id: u32,
    pub(crate) vendor_part_id: u32,
    pub(crate) hw_ver: u32,
    pub(crate) max_qp: c_int,
    pub(crate) max_qp_wr: c_int,
    pub(crate) device_cap_flags: c_uint,
    pub(crate) max_sge: c_int,
    pub(crate) max_sge_rd: c_int,
    pub(crate) max_cq: c_int,
    pub(crate) max_cqe: c_int,
    pub(crate) max_mr: c_int,
    pub(crate) max_pd: c_int,
    pub(crate) max_qp_rd_atom: c_int,
    pub(crate) max_ee_rd_atom: c_int,
    pub(crate) max_res_rd_atom: c_int,
    pub(crate) max_qp_init_rd_atom: c_int,
    pub(crate) max_ee_init_rd_atom: c_int,
    pub(crate) atomic_cap: c_int,
    pub(crate) max_ee: c_int,
    pub(crate) max_rdd: c_int,
    pub(crate) max_mw: c_int,
    pub(crate) max_raw_ipv6_qp: c_int,
    pub(crate) max_raw_ethy_qp: c_int,
    pub(crate) max_mcast_grp: c_int,
    pub(crate) max_mcast_qp_attach: c_int,
    pub(crate) max_total_mcast_qp_attach: c_int,
    pub(crate) max_ah: c_int,
    pub(crate) max_fmr: c_int,
    pub(crate) max_map_per_fmr: c_int,
    pub(crate) max_srq: c_int,
    pub(crate) max_srq_wr: c_int,
    pub(crate) max_srq_sge: c_int,
    pub(crate) max_pkeys: u16,
    pub(crate) local_ca_ack_delay: u8,
    pub(crate) phys_port_cnt: u8,
}

/// `IBV_DEVICE_MEM_WINDOW_TYPE_2B`: windows that are tied to a queue pair and can be invalidated by the peer.
pub(crate) const CAP_WINDOW_TYPE_2B: c_uint = 1 << 24;

/// The vendor of devices that are software: no vendor has the number.
pub(crate) const VENDOR_SOFTWARE: u32 = 0x00ff_ffff;
/// The vendor that Linux's siw says it is.
pub(crate) const VENDOR_SIW: u32 = 0x0062_6d74;

/// `struct _compat_ibv_port_attr`: what the library's own `ibv_query_port` fills in.
#[repr(C)]
pub(crate) struct PortAttr {
    pub(crate) state: c_int,
    pub(crate) max_mtu: c_int,
    pub(crate) active_mtu: c_int,
    pub(crate) gid_tbl_len: c_int,
    pub(crate) port_cap_flags: u32,
    pub(crate) max_msg_sz: u32,
    pub(crate) bad_pkey_cntr: u32,
    pub(crate) qkey_viol_cntr: u32,
    pub(crate) pkey_tbl_len: u16,
    pub(crate) lid: u16,
    pub(crate) sm_lid: u16,
    pub(crate) lmc: u8,
    pub(crate) max_vl_num: u8,
    pub(crate) sm_sl: u8,
    pub(crate) subnet_timeout: u8,
    pub(crate) init_type_reply: u8,
    pub(crate) active_width: u8,
    pub(crate) active_speed: u8,
    pub(crate) phys_state: u8,
    pub(crate) link_layer: u8,
    pub(crate) flags: u8,
    /// Beyond what the library fills in today; room in case it fills in more.
    pub(crate) port_cap_flags2: u16,
}

/// `IBV_PORT_ACTIVE`.
pub(crate) const PORT_ACTIVE: c_int = 4;
/// `IBV_LINK_LAYER_INFINIBAND`.
pub(crate) const LINK_INFINIBAND: u8 = 1;
/// `IBV_LINK_LAYER_ETHERNET`.
pub(crate) const LINK_ETHERNET: u8 = 2;

/// `struct ibv_pd`: a protection domain.
#[repr(C)]
pub(crate) struct Pd {
    pub(crate) context: *mut Context,
    pub(crate) handle: u32,
}

/// `struct ibv_mr`: registered memory.
#[repr(C)]
pub(crate) struct Mr {
    pub(crate) context: *mut Context,
    pub(crate) pd: *mut Pd,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// `struct ibv_mw`: a memory window.
#[repr(C)]
pub(crate) struct Mw {
    pub(crate) context: *mut Context,
    pub(crate) pd: *mut Pd,
    pub(crate) rkey: u32,
    pub(crate) handle: u32,
    pub(crate) kind: c_int,
}

/// `IBV_MW_TYPE_2`.
pub(crate) const MW_TYPE_2: c_int = 2;

/// `IBV_ACCESS_*`.
pub(crate) mod access {
    use std::ffi::c_int;

    pub(crate) const LOCAL_WRITE: c_int = 1;
    pub(crate) const REMOTE_WRITE: c_int = 1 << 1;
    pub(crate) const REMOTE_READ: c_int = 1 << 2;
    pub(crate) const MW_BIND: c_int = 1 << 4;
}

/// `struct ibv_comp_channel`: where a completion queue says that it has something.
#[repr(C)]
pub(crate) struct CompChannel {
    pub(crate) context: *mut Context,
    pub(crate) fd: c_int,
    pub(crate) refcnt: c_int,
}

/// The start of `struct ibv_cq`: a completion queue.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) context: *mut Context,
    pub(crate) channel: *mut CompChannel,
    pub(crate) cq_context: *mut c_void,
    pub(crate) handle: u32,
    pub(crate) cqe: c_int,
}

/// The start of `struct ibv_qp`: a queue pair.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) context: *mut Context,
    pub(crate) qp_context: *mut c_void,
    pub(crate) pd: *mut Pd,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut c_void,
    pub(crate) handle: u32,
    pub(crate) qp_num: u32,
    pub(crate) state: c_int,
    pub(crate) qp_type: c_int,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(crate) struct QpInitAttr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut c_void,
    pub(crate) cap: QpCap,
    pub(crate) qp_type: c_int,
    pub(crate) sq_sig_all: c_int,
}

/// `IBV_QPT_RC`: reliable connection.
pub(crate) const QPT_RC: c_int = 2;

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// `IBV_WR_*`.
pub(crate) mod opcode {
    use std::ffi::c_int;

    pub(crate) const RDMA_WRITE: c_int = 0;
    pub(crate) const SEND: c_int = 2;
    pub(crate) const RDMA_READ: c_int = 4;
    pub(crate) const LOCAL_INV: c_int = 7;
    pub(crate) const BIND_MW: c_int = 8;
    pub(crate) const SEND_WITH_INV: c_int = 9;
}

/// `IBV_SEND_*`.
pub(crate) mod flags {
    use std::ffi::c_uint;

    pub(crate) const SIGNALED: c_uint = 1 << 1;
    pub(crate) const INLINE: c_uint = 1 << 3;
}

/// `struct ibv_send_wr`: a work request for the Send queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SendWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_int,
    pub(crate) send_flags: c_uint,
    /// The tag to invalidate, for `SEND_WITH_INV` and `LOCAL_INV`.
    pub(crate) invalidate_rkey: u32,
    /// For RDMA Read and Write; the room that atomics need belongs to it.
    pub(crate) rdma: RdmaWr,
    /// A union of one member that is not used here.
    pub(crate) xrc: u64,
    /// For `BIND_MW`.
    pub(crate) bind: BindWr,
}

/// The union `wr` of [`SendWr`] as RDMA Read and Write use it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct RdmaWr {
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
    pub(crate) pad: u32,
    pub(crate) unused: [u64; 2],
}

/// The union after it, as `BIND_MW` uses it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BindWr {
    pub(crate) mw: *mut Mw,
    pub(crate) rkey: u32,
    /// `struct ibv_mw_bind_info`.
    pub(crate) mr: *mut Mr,
    pub(crate) addr: u64,
    pub(crate) length: u64,
    pub(crate) access: c_uint,
}

/// `struct ibv_recv_wr`: a work request for the Receive queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
}

/// `struct ibv_wc`: a completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) status: c_int,
    pub(crate) opcode: c_int,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    /// The tag that the peer had invalidated, with [`WC_WITH_INV`].
    pub(crate) invalidated_rkey: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

/// `IBV_WC_WITH_INV`.
pub(crate) const WC_WITH_INV: c_uint = 1 << 3;

/// `IB_WC_WITH_INVALIDATE`, the kernel's number for the same, which rxe passes on.
pub(crate) const WC_WITH_INV_KERNEL: c_uint = 1 << 2;

/// `IBV_WC_*`, the statuses that are told apart.
pub(crate) mod status {
    use std::ffi::c_int;

    pub(crate) const SUCCESS: c_int = 0;
    pub(crate) const LOC_LEN_ERR: c_int = 1;
    pub(crate) const LOC_PROT_ERR: c_int = 4;
    pub(crate) const WR_FLUSH_ERR: c_int = 5;
    pub(crate) const LOC_ACCESS_ERR: c_int = 8;
    pub(crate) const REM_INV_REQ_ERR: c_int = 9;
    pub(crate) const REM_ACCESS_ERR: c_int = 10;
    pub(crate) const REM_OP_ERR: c_int = 11;
    pub(crate) const RETRY_EXC_ERR: c_int = 12;
    pub(crate) const RNR_RETRY_EXC_ERR: c_int = 13;
}
