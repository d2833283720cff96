// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title The network's own token: fixed supply, no owner, no mint.
contract GpuToken is ERC20, ERC20Permit {
    /// @param holder receives the whole supply.
    constructor(address holder, uint256 supply) ERC20("GPU Lease", "GPU") ERC20Permit("GPU Lease") {
        _mint(holder, supply);
    }
}
