// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";

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
    function getChainId() external view returns (uint256);
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);
    function snapshotState() external returns (uint256);
    function revertToState(uint256) external returns (bool);
    function getCode(string calldata) external view returns (bytes memory);
    function envOr(string calldata, string calldata) external view returns (string memory);
    function readLine(string calldata) external view returns (string memory);
    function parseBytes(string calldata) external pure returns (bytes memory);
    function skip(bool) external;

    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }
}

Vm constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

/// @dev The contract under test, and what it has from OpenZeppelin. The tests never name the contract itself: it is deployed
/// from the bytes that were compiled as they are shipped, whatever the settings that tests are compiled with.
interface Escrow is ILeaseEscrow {
    function owner() external view returns (address);
    function pendingOwner() external view returns (address);
    function transferOwnership(address) external;
    function acceptOwnership() external;
    function renounceOwnership() external;
}

/// @dev MockUSDC and GpuToken, of which only the first mints and knows EIP-3009.
interface Token is IERC20 {
    function mint(address to, uint256 amount) external;
    function nonces(address) external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
    function permit(address, address, uint256, uint256, uint8, bytes32, bytes32) external;
    function authorizationState(address, bytes32) external view returns (bool);
    function cancelAuthorization(address, bytes32, uint8, bytes32, bytes32) external;
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;
}

error NotEqual(string what, uint256 is_, uint256 expected);

function same(string memory what, uint256 a, uint256 b) pure {
    if (a != b) revert NotEqual(what, a, b);
}

function yes(string memory what, bool holds) pure {
    if (!holds) revert NotEqual(what, 0, 1);
}

function create(bytes memory initCode) returns (address made) {
    assembly ("memory-safe") {
        made := create(0, add(initCode, 32), mload(initCode))
        if iszero(made) {
            let free := mload(0x40)
            returndatacopy(free, 0, returndatasize())
            revert(free, returndatasize())
        }
    }
}

function escrowCode(bytes32 networkId, address owner, address feeRecipient, uint40 claimWindow)
    view
    returns (bytes memory)
{
    return bytes.concat(
        vm.getCode("LeaseEscrow.sol:LeaseEscrow"), abi.encode(networkId, owner, feeRecipient, claimWindow)
    );
}

function newUsdc() returns (Token) {
    return Token(create(vm.getCode("MockUSDC.sol:MockUSDC")));
}

function newGpu(address holder, uint256 supply) returns (Token) {
    return Token(create(bytes.concat(vm.getCode("GpuToken.sol:GpuToken"), abi.encode(holder, supply))));
}

function signed(uint256 key, bytes32 digest) returns (bytes memory) {
    (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
    return abi.encodePacked(r, s, v);
}

function sign712(uint256 key, bytes32 separator, bytes32 structHash) returns (uint8 v, bytes32 r, bytes32 s) {
    return vm.sign(key, keccak256(abi.encodePacked("\x19\x01", separator, structHash)));
}

/// @dev EIP-3009, good for ever, to `to`.
function receiveAuthorization(uint256 key, Token token, address to, uint256 value, bytes32 nonce)
    returns (ILeaseEscrow.Authorization memory a)
{
    bytes32 typehash = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    a.validBefore = type(uint40).max;
    bytes32 structHash = keccak256(abi.encode(typehash, vm.addr(key), to, value, a.validAfter, a.validBefore, nonce));
    (a.v, a.r, a.s) = sign712(key, token.DOMAIN_SEPARATOR(), structHash);
}

/// @dev EIP-2612, for a minute.
function permitOf(uint256 key, Token token, address spender, uint256 value) returns (ILeaseEscrow.Permit memory p) {
    bytes32 typehash = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    address from = vm.addr(key);
    (p.value, p.deadline) = (value, vm.getBlockTimestamp() + 60);
    bytes32 structHash = keccak256(abi.encode(typehash, from, spender, value, token.nonces(from), p.deadline));
    (p.v, p.r, p.s) = sign712(key, token.DOMAIN_SEPARATOR(), structHash);
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

    Escrow escrow;
    Token usdc;
    Token gpu;
    uint256 private _refs;

    function setUp() public virtual {
        vm.warp(START);
        provider = vm.addr(PROVIDER_KEY);
        session = vm.addr(SESSION_KEY);
        stranger = vm.addr(STRANGER_KEY);
        consumer = vm.addr(CONSUMER_KEY);
        escrow = Escrow(create(escrowCode(NETWORK, owner, treasury, WINDOW)));
        usdc = makeUsdc();
        gpu = newGpu(consumer, 1e27);
        allow(usdc, 200);
        allow(gpu, 0);
        fund(usdc, consumer, 1e15);
        approve(gpu, consumer);
    }

    function makeUsdc() internal virtual returns (Token) {
        return newUsdc();
    }

    function allow(IERC20 token, uint16 feeBps) internal {
        vm.prank(owner);
        escrow.setToken(address(token), true, feeBps);
    }

    function approve(IERC20 token, address from) internal {
        vm.prank(from);
        token.approve(address(escrow), type(uint256).max);
    }

    /// @dev Gives tokens, and lets the escrow take them.
    function fund(Token token, address to, uint256 amount) internal {
        token.mint(to, amount);
        approve(token, to);
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
        q.expiresAt = uint64(vm.getBlockTimestamp() + 600);
        q.nonce = ref;
    }

    function newQuote() internal returns (ILeaseEscrow.Quote memory) {
        return quoteOf(++_refs);
    }

    function priceOf(ILeaseEscrow.Quote memory q, uint256 s) internal pure returns (uint256) {
        return s * q.pricePerGpuHour * q.gpus / 3600;
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

    function authorization(ILeaseEscrow.Quote memory q, address signer, uint128 deposit)
        internal
        returns (ILeaseEscrow.Authorization memory)
    {
        bytes32 nonce = escrow.authorizationNonce(escrow.hashQuote(q), signer);
        return receiveAuthorization(CONSUMER_KEY, usdc, address(escrow), deposit, nonce);
    }

    /// @dev The optimizer takes `block.timestamp` for constant inside of one call, which it is on a chain.
    function pass(uint256 seconds_) internal {
        vm.warp(vm.getBlockTimestamp() + seconds_);
    }

    function expect(bytes memory revertData) internal {
        vm.expectRevert(revertData);
    }

    function expectNotAuthorized(address caller) internal {
        vm.expectRevert(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, caller));
    }

    function expectBadSignature(address expected) internal {
        vm.expectRevert(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, expected));
    }

    function credit(address account) internal view returns (uint256) {
        return escrow.credits(address(usdc), account);
    }

    /// @dev What must hold for every token at every moment.
    function checkBooks(address token) internal view {
        ILeaseEscrow.Totals memory t = escrow.totals(token);
        same("deposited = paid + fee + refunded + held", t.deposited, t.paid + t.fee + t.refunded + t.held);
        same("balance = deposited - withdrawn", IERC20(token).balanceOf(address(escrow)), t.deposited - t.withdrawn);
    }
}
