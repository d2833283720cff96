// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {LeaseEscrow} from "../src/LeaseEscrow.sol";
import {GpuToken} from "../src/tokens/GpuToken.sol";
import {MockUSDC} from "../src/tokens/MockUSDC.sol";

/// @dev The cheat codes in use; forge has more.
interface Vm {
    function warp(uint256) external;
    function getBlockTimestamp() external view returns (uint256);
    function prank(address) external;
    function addr(uint256 key) external returns (address);
    function sign(uint256 key, bytes32 digest) external returns (uint8 v, bytes32 r, bytes32 s);
    function expectRevert(bytes calldata) external;
    function expectEmit() external;
    function assume(bool) external;
    function etch(address, bytes calldata) external;
    function chainId(uint256) external;
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);

    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }
}

Vm constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

error NotEqual(string what, uint256 is_, uint256 expected);

function same(string memory what, uint256 a, uint256 b) pure {
    if (a != b) revert NotEqual(what, a, b);
}

function yes(string memory what, bool holds) pure {
    if (!holds) revert NotEqual(what, 0, 1);
}

/// @dev People with keys, two tokens, an escrow, and quotes that fit.
abstract contract Base {
    uint256 constant START = 1_800_000_000;
    uint40 constant WINDOW = 1 days;
    bytes32 constant NETWORK = keccak256("gpulease");
    uint128 constant PRICE = 340_000;

    uint256 constant PROVIDER_KEY = 0xA11;
    uint256 constant SESSION_KEY = 0x5E55;
    uint256 constant STRANGER_KEY = 0xBAD;
    uint256 constant CONSUMER_KEY = 0xC0;

    address provider;
    address session;
    address stranger;
    address consumer;
    address payee = address(0xFA1E);
    address referrer = address(0x4EF);
    address treasury = address(0xFEE);
    address owner = address(0x0111);

    LeaseEscrow escrow;
    MockUSDC usdc;
    GpuToken gpu;
    uint256 private _refs;

    function setUp() public virtual {
        vm.warp(START);
        provider = vm.addr(PROVIDER_KEY);
        session = vm.addr(SESSION_KEY);
        stranger = vm.addr(STRANGER_KEY);
        consumer = vm.addr(CONSUMER_KEY);
        escrow = new LeaseEscrow(NETWORK, owner, treasury, WINDOW);
        usdc = new MockUSDC();
        gpu = new GpuToken(consumer, 1e27);
        vm.prank(owner);
        escrow.setToken(address(usdc), true, 200);
        vm.prank(owner);
        escrow.setToken(address(gpu), true, 0);
        usdc.mint(consumer, 1e15);
        vm.prank(consumer);
        usdc.approve(address(escrow), type(uint256).max);
        vm.prank(consumer);
        gpu.approve(address(escrow), type(uint256).max);
    }

    function quoteOf(uint256 ref) internal view returns (ILeaseEscrow.Quote memory q) {
        q.networkId = NETWORK;
        q.provider = provider;
        q.payee = payee;
        q.consumer = consumer;
        q.leaseRef = bytes32(ref);
        q.token = address(usdc);
        q.pricePerGpuHour = PRICE;
        q.gpus = 2;
        q.minSeconds = 60;
        q.maxSeconds = 3600;
        q.startTimeoutSeconds = 300;
        q.graceSeconds = 600;
        q.expiresAt = uint64(block.timestamp + 600);
        q.nonce = ref;
    }

    function newQuote() internal returns (ILeaseEscrow.Quote memory) {
        return quoteOf(++_refs);
    }

    function priceOf(ILeaseEscrow.Quote memory q, uint256 s) internal pure returns (uint256) {
        return s * q.pricePerGpuHour * q.gpus / 3600;
    }

    function signed(uint256 key, bytes32 digest) internal returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function signedQuote(ILeaseEscrow.Quote memory q) internal returns (bytes memory) {
        return signed(PROVIDER_KEY, escrow.hashQuote(q));
    }

    function open(ILeaseEscrow.Quote memory q, uint128 deposit) internal returns (bytes32) {
        bytes memory signature = signedQuote(q);
        vm.prank(q.consumer);
        return escrow.open(q, signature, session, deposit);
    }

    /// @dev Opened now, with all that an hour of two GPUs costs.
    function openFull() internal returns (bytes32) {
        ILeaseEscrow.Quote memory q = newQuote();
        return open(q, uint128(priceOf(q, q.maxSeconds)));
    }

    function voucher(bytes32 leaseId, uint32 seconds_, bool last)
        internal
        returns (ILeaseEscrow.Voucher memory v, bytes memory signature)
    {
        v = ILeaseEscrow.Voucher({leaseId: leaseId, servedSeconds: seconds_, last: last});
        signature = signed(SESSION_KEY, escrow.hashVoucher(v));
    }

    function settle(bytes32 leaseId, uint32 seconds_) internal {
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(leaseId, seconds_, false);
        escrow.settle(v, signature);
    }

    function close(bytes32 leaseId, uint32 seconds_) internal {
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(leaseId, seconds_, true);
        vm.prank(provider);
        escrow.close(v, signature);
    }

    function release(bytes32 leaseId, uint32 seconds_)
        internal
        returns (ILeaseEscrow.Release memory r, bytes memory signature)
    {
        r = ILeaseEscrow.Release({leaseId: leaseId, servedSeconds: seconds_});
        signature = signed(PROVIDER_KEY, escrow.hashRelease(r));
    }

    /// @dev The optimizer takes `block.timestamp` for constant inside of one call, which it is on a chain.
    function pass(uint256 seconds_) internal {
        vm.warp(vm.getBlockTimestamp() + seconds_);
    }

    function expect(bytes memory revertData) internal {
        vm.expectRevert(revertData);
    }

    /// @dev What must hold for every token at every moment.
    function checkBooks(address token) internal view {
        ILeaseEscrow.Totals memory t = escrow.totals(token);
        same("deposited = paid + fee + refunded + held", t.deposited, t.paid + t.fee + t.refunded + t.held);
        same("balance = deposited - withdrawn", MockUSDC(token).balanceOf(address(escrow)), t.deposited - t.withdrawn);
    }
}
