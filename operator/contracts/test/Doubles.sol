// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";

/// @dev A provider that is a contract: accepts what its owner lets it.
contract Wallet1271 {
    bytes32 public accepted;

    function accept(bytes32 digest) external {
        accepted = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == accepted ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}

/// @dev Keeps a tenth of every transfer.
contract TaxedToken is ERC20("Taxed", "TAX") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(to, address(0xdead), amount / 10);
    }
}

/// @dev Refuses whom it does not like, as real stablecoins do.
contract ListingToken is ERC20("Listing", "LST") {
    mapping(address => bool) public listed;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function list(address account, bool bad) external {
        listed[account] = bad;
    }

    function _update(address from, address to, uint256 amount) internal override {
        require(!listed[from] && !listed[to], "listed");
        super._update(from, to, amount);
    }
}

/// @dev Calls back into the escrow while it moves.
contract ReenteringToken is ERC20("Reenter", "REE") {
    ILeaseEscrow escrow;
    bytes attack;
    bytes public answer;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function arm(ILeaseEscrow escrow_, bytes calldata attack_) external {
        (escrow, attack) = (escrow_, attack_);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (address(escrow) != address(0) && from != address(0)) (, answer) = address(escrow).call(attack);
    }
}
