//! Compares our types with the installed headers: a C program prints what the compiler makes of them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    mem::{offset_of, size_of},
    path::Path,
    process::{Command, Stdio},
};

use super::{cm, verbs};

/// What both sides say: a C expression and our number for it.
type Facts = Vec<(String, usize)>;

macro_rules! whole {
    ($facts:ident, $ours:ty, $theirs:literal) => {
        $facts.push((format!("sizeof({})", $theirs), size_of::<$ours>()));
    };
}

macro_rules! fields {
    ($facts:ident, $ours:ty, $theirs:literal; $($field:ident $(. $inner:ident)* => $name:literal),* $(,)?) => {
        $(
            $facts.push((format!("offsetof({}, {})", $theirs, $name), offset_of!($ours, $field $(. $inner)*)));
        )*
    };
}

macro_rules! constants {
    ($facts:ident; $($ours:expr => $theirs:literal),* $(,)?) => {
        $($facts.push((format!("(long)({})", $theirs), $ours as usize));)*
    };
}

fn structures() -> Facts {
    let mut facts = Facts::new();
    fields!(facts, verbs::Device, "struct ibv_device";
        node_type => "node_type", transport_type => "transport_type", name => "name");
    fields!(facts, verbs::Context, "struct ibv_context";
        device => "device", ops.alloc_mw => "ops.alloc_mw", ops.dealloc_mw => "ops.dealloc_mw",
        ops.poll_cq => "ops.poll_cq", ops.req_notify_cq => "ops.req_notify_cq",
        ops.post_srq_recv => "ops.post_srq_recv", ops.post_send => "ops.post_send", ops.post_recv => "ops.post_recv",
        cmd_fd => "cmd_fd", async_fd => "async_fd");
    whole!(facts, verbs::AsyncEvent, "struct ibv_async_event");
    fields!(facts, verbs::AsyncEvent, "struct ibv_async_event";
        element => "element", event_type => "event_type");
    whole!(facts, verbs::DeviceAttr, "struct ibv_device_attr");
    fields!(facts, verbs::DeviceAttr, "struct ibv_device_attr";
        fw_ver => "fw_ver", max_mr_size => "max_mr_size", vendor_id => "vendor_id", max_qp_wr => "max_qp_wr",
        device_cap_flags => "device_cap_flags", max_sge => "max_sge", max_cqe => "max_cqe", max_mr => "max_mr",
        max_qp_rd_atom => "max_qp_rd_atom", max_qp_init_rd_atom => "max_qp_init_rd_atom", max_mw => "max_mw",
        max_srq_sge => "max_srq_sge", phys_port_cnt => "phys_port_cnt");
    // Not the length: it grows, and the library's own function fills in what comes before the last of these.
    fields!(facts, verbs::PortAttr, "struct ibv_port_attr";
        state => "state", active_mtu => "active_mtu", max_msg_sz => "max_msg_sz", link_layer => "link_layer",
        flags => "flags", port_cap_flags2 => "port_cap_flags2");
    fields!(facts, verbs::Pd, "struct ibv_pd"; context => "context");
    whole!(facts, verbs::Mr, "struct ibv_mr");
    fields!(facts, verbs::Mr, "struct ibv_mr";
        addr => "addr", length => "length", lkey => "lkey", rkey => "rkey");
    whole!(facts, verbs::Mw, "struct ibv_mw");
    fields!(facts, verbs::Mw, "struct ibv_mw"; context => "context", rkey => "rkey", kind => "type");
    whole!(facts, verbs::CompChannel, "struct ibv_comp_channel");
    fields!(facts, verbs::CompChannel, "struct ibv_comp_channel"; fd => "fd");
    fields!(facts, verbs::Cq, "struct ibv_cq"; context => "context", channel => "channel", cqe => "cqe");
    fields!(facts, verbs::Qp, "struct ibv_qp"; context => "context", qp_num => "qp_num", qp_type => "qp_type");
    whole!(facts, verbs::QpInitAttr, "struct ibv_qp_init_attr");
    fields!(facts, verbs::QpInitAttr, "struct ibv_qp_init_attr";
        send_cq => "send_cq", recv_cq => "recv_cq", cap => "cap", qp_type => "qp_type", sq_sig_all => "sq_sig_all");
    fields!(facts, verbs::QpCap, "struct ibv_qp_cap";
        max_send_wr => "max_send_wr", max_recv_wr => "max_recv_wr", max_send_sge => "max_send_sge",
        max_recv_sge => "max_recv_sge", max_inline_data => "max_inline_data");
    whole!(facts, verbs::Sge, "struct ibv_sge");
    fields!(facts, verbs::Sge, "struct ibv_sge"; addr => "addr", length => "length", lkey => "lkey");
    whole!(facts, verbs::SendWr, "struct ibv_send_wr");
    fields!(facts, verbs::SendWr, "struct ibv_send_wr";
        wr_id => "wr_id", next => "next", sg_list => "sg_list", num_sge => "num_sge", opcode => "opcode",
        send_flags => "send_flags", invalidate_rkey => "invalidate_rkey", rdma.remote_addr => "wr.rdma.remote_addr",
        rdma.rkey => "wr.rdma.rkey", xrc => "qp_type", bind.mw => "bind_mw.mw", bind.rkey => "bind_mw.rkey",
        bind.mr => "bind_mw.bind_info.mr", bind.addr => "bind_mw.bind_info.addr",
        bind.length => "bind_mw.bind_info.length", bind.access => "bind_mw.bind_info.mw_access_flags");
    whole!(facts, verbs::RecvWr, "struct ibv_recv_wr");
    fields!(facts, verbs::RecvWr, "struct ibv_recv_wr";
        wr_id => "wr_id", next => "next", sg_list => "sg_list", num_sge => "num_sge");
    whole!(facts, verbs::Wc, "struct ibv_wc");
    fields!(facts, verbs::Wc, "struct ibv_wc";
        wr_id => "wr_id", status => "status", opcode => "opcode", byte_len => "byte_len",
        invalidated_rkey => "invalidated_rkey", qp_num => "qp_num", wc_flags => "wc_flags");
    whole!(facts, cm::EventChannel, "struct rdma_event_channel");
    fields!(facts, cm::Id, "struct rdma_cm_id";
        verbs => "verbs", channel => "channel", qp => "qp", route.addr.src => "route.addr.src_storage",
        route.addr.dst => "route.addr.dst_storage", route.path_rec => "route.path_rec", port_space => "ps",
        port_num => "port_num");
    whole!(facts, cm::ConnParam, "struct rdma_conn_param");
    fields!(facts, cm::ConnParam, "struct rdma_conn_param";
        private_data => "private_data", private_data_len => "private_data_len",
        responder_resources => "responder_resources", initiator_depth => "initiator_depth",
        flow_control => "flow_control", retry_count => "retry_count", rnr_retry_count => "rnr_retry_count",
        qp_num => "qp_num");
    fields!(facts, cm::Event, "struct rdma_cm_event";
        id => "id", listen_id => "listen_id", event => "event", status => "status", conn => "param.conn");
    facts
}

fn numbers() -> Facts {
    use cm::event;
    use verbs::{access, async_event, flags, opcode, status};
    let mut facts = Facts::new();
    constants!(facts;
        verbs::TRANSPORT_IB => "IBV_TRANSPORT_IB", verbs::TRANSPORT_IWARP => "IBV_TRANSPORT_IWARP",
        verbs::CAP_WINDOW_TYPE_2B => "IBV_DEVICE_MEM_WINDOW_TYPE_2B", verbs::PORT_ACTIVE => "IBV_PORT_ACTIVE",
        verbs::LINK_INFINIBAND => "IBV_LINK_LAYER_INFINIBAND", verbs::LINK_ETHERNET => "IBV_LINK_LAYER_ETHERNET",
        verbs::MW_TYPE_2 => "IBV_MW_TYPE_2", verbs::QPT_RC => "IBV_QPT_RC", verbs::WC_WITH_INV => "IBV_WC_WITH_INV",
        access::LOCAL_WRITE => "IBV_ACCESS_LOCAL_WRITE", access::REMOTE_WRITE => "IBV_ACCESS_REMOTE_WRITE",
        access::REMOTE_READ => "IBV_ACCESS_REMOTE_READ", access::MW_BIND => "IBV_ACCESS_MW_BIND",
        opcode::RDMA_WRITE => "IBV_WR_RDMA_WRITE", opcode::SEND => "IBV_WR_SEND",
        opcode::RDMA_READ => "IBV_WR_RDMA_READ", opcode::LOCAL_INV => "IBV_WR_LOCAL_INV",
        opcode::BIND_MW => "IBV_WR_BIND_MW", opcode::SEND_WITH_INV => "IBV_WR_SEND_WITH_INV",
        flags::SIGNALED => "IBV_SEND_SIGNALED", flags::INLINE => "IBV_SEND_INLINE",
        status::SUCCESS => "IBV_WC_SUCCESS", status::LOC_LEN_ERR => "IBV_WC_LOC_LEN_ERR",
        status::LOC_PROT_ERR => "IBV_WC_LOC_PROT_ERR", status::WR_FLUSH_ERR => "IBV_WC_WR_FLUSH_ERR",
        status::LOC_ACCESS_ERR => "IBV_WC_LOC_ACCESS_ERR", status::REM_INV_REQ_ERR => "IBV_WC_REM_INV_REQ_ERR",
        status::REM_ACCESS_ERR => "IBV_WC_REM_ACCESS_ERR", status::REM_OP_ERR => "IBV_WC_REM_OP_ERR",
        status::RETRY_EXC_ERR => "IBV_WC_RETRY_EXC_ERR", status::RNR_RETRY_EXC_ERR => "IBV_WC_RNR_RETRY_EXC_ERR",
        async_event::CQ_ERR => "IBV_EVENT_CQ_ERR", async_event::QP_FATAL => "IBV_EVENT_QP_FATAL",
        async_event::QP_REQ_ERR => "IBV_EVENT_QP_REQ_ERR", async_event::QP_ACCESS_ERR => "IBV_EVENT_QP_ACCESS_ERR",
        async_event::DEVICE_FATAL => "IBV_EVENT_DEVICE_FATAL", async_event::PORT_ERR => "IBV_EVENT_PORT_ERR",
        cm::OPTION_ID => "RDMA_OPTION_ID", cm::OPTION_AFONLY => "RDMA_OPTION_ID_AFONLY",
        cm::PS_TCP => "RDMA_PS_TCP", event::ADDR_RESOLVED => "RDMA_CM_EVENT_ADDR_RESOLVED",
        event::ADDR_ERROR => "RDMA_CM_EVENT_ADDR_ERROR", event::ROUTE_RESOLVED => "RDMA_CM_EVENT_ROUTE_RESOLVED",
        event::ROUTE_ERROR => "RDMA_CM_EVENT_ROUTE_ERROR",
        event::CONNECT_REQUEST => "RDMA_CM_EVENT_CONNECT_REQUEST",
        event::CONNECT_ERROR => "RDMA_CM_EVENT_CONNECT_ERROR", event::UNREACHABLE => "RDMA_CM_EVENT_UNREACHABLE",
        event::REJECTED => "RDMA_CM_EVENT_REJECTED", event::ESTABLISHED => "RDMA_CM_EVENT_ESTABLISHED",
        event::DISCONNECTED => "RDMA_CM_EVENT_DISCONNECTED",
        event::DEVICE_REMOVAL => "RDMA_CM_EVENT_DEVICE_REMOVAL", event::ADDR_CHANGE => "RDMA_CM_EVENT_ADDR_CHANGE",
    );
    facts
}

/// Compiles and runs a C program that prints one number per fact. `None` where there is no compiler.
fn ask_the_compiler(facts: &Facts) -> Option<Vec<usize>> {
    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
    );
    for (expression, _) in facts {
        writeln!(program, "    printf(\"%zu\\n\", (size_t)({expression}));").unwrap();
    }
    program.push_str("    return 0;\n}\n");
    let out = std::env::temp_dir().join(format!("verbs-layout-{}", std::process::id()));
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-", "-o"])
        .arg(&out)
        .stdin(Stdio::piped())
        .spawn()
        .inspect_err(|e| println!("skipped: cc cannot be run: {e}"))
        .ok()?;
    cc.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    assert!(cc.wait().unwrap().success(), "the headers do not have what we use");
    let printed = Command::new(&out).output().unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    Some(text.lines().map(|line| line.parse().unwrap()).collect())
}

#[test]
fn types_and_constants_are_those_of_the_headers() {
    if !["infiniband/verbs.h", "rdma/rdma_cma.h"].iter().all(|h| Path::new("/usr/include").join(h).exists()) {
        println!("skipped: libibverbs-dev and librdmacm-dev are not installed");
        return;
    }
    let facts: Facts = structures().into_iter().chain(numbers()).collect();
    let Some(theirs) = ask_the_compiler(&facts) else { return };
    assert_eq!(theirs.len(), facts.len());
    let wrong: BTreeMap<&str, (usize, usize)> = (facts.iter().zip(theirs))
        .filter(|((_, ours), theirs)| ours != theirs)
        .map(|((what, ours), theirs)| (what.as_str(), (*ours, theirs)))
        .collect();
    assert!(wrong.is_empty(), "ours and the headers' differ: {wrong:#?}");
}
